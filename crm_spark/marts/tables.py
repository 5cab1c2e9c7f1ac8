"""Tables of the marts layer: what analysts read."""

from crm_spark.checks import Check
from crm_spark.cleaning.tables import MONEY
from crm_spark.tables import Column, Table

# Of many customers together.
AMOUNT = "decimal(22,4)"

MART_CUSTOMER_360 = Table(
    name="mart_customer_360",
    comment="One row per customer known before as_of.",
    key=("customer_id",),
    columns=(
        Column("customer_id", "string", "The customer."),
        Column("as_of", "date", "The date for which the customer is described."),
        Column("segment_name", "string", "The segment."),
        Column("recency_days", "int", "Days since the last purchase.", nullable=True),
        Column("tenure_days", "int", "Days since the first purchase.", nullable=True),
        Column("order_count", "bigint", "Orders ever."),
        Column("net_amount", MONEY, "Paid less returned, ever."),
        Column("order_count_28d", "bigint", "Orders in the last 28 days."),
        Column("net_amount_28d", MONEY, "Paid less returned in the last 28 days."),
        Column("mean_order_amount", "double", "Net amount an order.", nullable=True),
        Column("discount_share", "double", "Discounts in amounts before discounts.", nullable=True),
        Column("recency_score", "int", "1 to 5; 5 for those who bought most recently.", nullable=True),
        Column("frequency_score", "int", "1 to 5; 5 for those with most orders.", nullable=True),
        Column("monetary_score", "int", "1 to 5; 5 for those who paid most.", nullable=True),
        Column("rfm_cell", "string", "The three scores in a row, such as 545.", nullable=True),
        Column("rfm_segment", "string", "The RFM segment that the configuration gives this cell.", nullable=True),
        Column("value_score", "double", "What purchases, service and feedback say of their value, 0 to 1."),
        Column("churn_probability", "double", "Probability of no purchase within the horizon.", nullable=True),
        Column("churn_reasons", "array<string>", "What speaks most for churn.", nullable=True),
        Column(
            "response_probability",
            "double",
            "Probability of a response within the horizon, if contacted.",
            nullable=True,
        ),
        Column(
            "expected_amount_28d",
            "double",
            "Net amount a day of tenure, times 28, times the probability of not churning.",
            nullable=True,
        ),
        Column("age_band", "string", "Age band.", nullable=True, personal=True),
        Column("gender", "string", "Gender.", nullable=True, personal=True),
        Column("income_band", "string", "Income band.", nullable=True, personal=True),
        Column("household_size_band", "string", "Persons in the household.", nullable=True, personal=True),
        Column("household_kind", "string", "Adults and children in it.", nullable=True, personal=True),
    ),
    checks=(Check("churn_within_0_and_1", "churn_probability IS NULL OR churn_probability BETWEEN 0 AND 1"),),
)

MART_SEGMENT_PROFILES = Table(
    name="mart_segment_profiles",
    comment="One row per segment.",
    key=("segment_name",),
    columns=(
        Column("segment_name", "string", "The segment."),
        Column("customer_count", "bigint", "Customers in it."),
        Column("customer_share", "double", "Their share of all customers."),
        Column("net_amount", AMOUNT, "What they paid less returns, ever."),
        Column("net_amount_share", "double", "Its share of all net amounts.", nullable=True),
        Column("mean_recency_days", "double", "Mean days since the last purchase.", nullable=True),
        Column("mean_order_count", "double", "Mean orders a customer."),
        Column("mean_net_amount", "double", "Mean net amount a customer."),
        Column("mean_order_amount", "double", "Mean net amount an order.", nullable=True),
        Column("mean_discount_share", "double", "Mean share of discounts.", nullable=True),
        Column("mean_category_count", "double", "Mean distinct categories bought."),
        Column("mean_churn_probability", "double", "Mean probability of churn.", nullable=True),
    ),
)

MART_RFM_CELLS = Table(
    name="mart_rfm_cells",
    comment="One row per recency and frequency score that some customer has.",
    key=("recency_score", "frequency_score"),
    columns=(
        Column("recency_score", "int", "1 to 5; 5 is most recent."),
        Column("frequency_score", "int", "1 to 5; 5 is most frequent."),
        Column("customer_count", "bigint", "Customers."),
        Column("net_amount", AMOUNT, "What they paid less returns, ever."),
        Column("mean_churn_probability", "double", "Mean probability of churn.", nullable=True),
    ),
)

MART_DEMOGRAPHICS = Table(
    name="mart_demographics",
    comment="One row per age and income band of customers who state both.",
    key=("age_band", "income_band"),
    columns=(
        Column("age_band", "string", "Age band."),
        Column("income_band", "string", "Income band."),
        Column("customer_count", "bigint", "Customers."),
        Column("mean_net_amount", "double", "Mean net amount a customer, ever."),
    ),
)

MART_OUTLIERS = Table(
    name="mart_outliers",
    comment="One row per customer and feature whose value at as_of is an outlier by its declared rule.",
    key=("customer_id", "feature"),
    columns=(
        Column("customer_id", "string", "The customer."),
        Column("as_of", "date", "The cut-off."),
        Column("feature", "string", "The column of feature_customers."),
        Column("value", "double", "Its value."),
        Column("low", "double", "The lower limit of all customers at as_of.", nullable=True),
        Column("high", "double", "The upper limit.", nullable=True),
        Column("rule", "string", "The rule that the configuration declares for it."),
    ),
    checks=(Check("value_beyond_limits", "value < low OR value > high"),),
)

# Of products without one, and of all where nothing tells of products.
NO_DEPARTMENT = "(none)"

MART_DEPARTMENT_WEEKS = Table(
    name="mart_department_weeks",
    comment="One row per department and week with a sale before as_of.",
    key=("department", "week_starts_on"),
    columns=(
        Column("department", "string", "The department; `(none)` for products without one."),
        Column("week_starts_on", "date", "The week's Monday."),
        Column("day_count", "int", "Days of the week before as_of that the data cover: 7 for a whole week."),
        Column("net_amount", AMOUNT, "Paid less returned."),
        Column("order_count", "bigint", "Orders with a product of the department."),
    ),
)

MART_MODEL_QUALITY = Table(
    name="mart_model_quality",
    comment="One row per task, model, fold and metric. Baselines are models too.",
    key=("task", "model", "fold", "metric"),
    columns=(
        Column("task", "string", "The prediction task."),
        Column("model", "string", "The model, or baseline_recency, baseline_frequency, baseline_majority."),
        Column("fold", "string", "train, validation or test."),
        Column(
            "metric",
            "string",
            "row_count, event_share, accuracy (at 0.5), auc, average_precision, log_loss, brier, "
            "calibration_error (mean distance of deciles), top_decile_lift.",
        ),
        Column("value", "double", "Its value."),
    ),
)

MART_MODEL_DECILES = Table(
    name="mart_model_deciles",
    comment="One row per task, model, fold and decile of the probability: lift and calibration.",
    key=("task", "model", "fold", "decile"),
    columns=(
        Column("task", "string", "The prediction task."),
        Column("model", "string", "The model."),
        Column("fold", "string", "train, validation or test."),
        Column("decile", "int", "1 for the highest probabilities; equal probabilities share a decile."),
        Column("customer_count", "bigint", "Customers in it."),
        Column("event_count", "bigint", "How many of them have label 1."),
        Column("mean_probability", "double", "Mean predicted probability."),
        Column("event_share", "double", "What share has label 1."),
        Column("lift", "double", "event_share over that of the whole fold.", nullable=True),
    ),
    checks=(Check("decile_within_1_and_10", "decile BETWEEN 1 AND 10"),),
)

MART_MODEL_RULES = Table(
    name="mart_model_rules",
    comment="One row per leaf of a task's decision tree, the most probable first.",
    key=("task", "rule_no"),
    columns=(
        Column("task", "string", "The prediction task."),
        Column("rule_no", "int", "Counts from the highest probability."),
        Column("rule", "string", "The conditions in words, joined by `and`."),
        Column("probability", "double", "Share of label 1 among its training rows."),
        Column("train_count", "bigint", "Its training rows."),
    ),
)

MART_DATA_QUALITY = Table(
    name="mart_data_quality",
    comment="One row per file taken in: what became of its rows.",
    key=("source", "batch_id"),
    columns=(
        Column("source", "string", "The source's name in the configuration."),
        Column("entity", "string", "The entity."),
        Column("batch_id", "string", "SHA-256 of the file."),
        Column("file_name", "string", "The file's name as it came."),
        Column("fault", "string", "Why the file cannot be read; no row of it counts.", nullable=True),
        Column("read_count", "bigint", "Rows read."),
        Column("accepted_count", "bigint", "Rows accepted."),
        Column("rejected_count", "bigint", "Rows in quarantine."),
        Column("duplicate_count", "bigint", "Duplicates left out."),
        Column("superseded_count", "bigint", "Rows left out for newer ones with other content."),
        Column("deletion_count", "bigint", "Rows that delete what had their key."),
        Column(
            "reasons",
            "array<struct<reason:string,row_count:bigint>>",
            "Rejected rows by reason; a row may have several.",
        ),
        Column("late_count", "bigint", "Good rows known more than `arrival_hours` after they happened."),
        Column("first_happened_at", "timestamp", "The earliest event that a good row tells of (UTC).", nullable=True),
        Column("last_happened_at", "timestamp", "The latest one up to when the file came (UTC).", nullable=True),
        Column(
            "freshness_hours",
            "bigint",
            "Full hours from its latest event to when the file was taken in.",
            nullable=True,
            volatile=True,
        ),
        Column(
            "warnings",
            "array<struct<rule:string,row_count:bigint>>",
            "Good rows that break a rule that warns, and accepted rows that name something that no clean row is about "
            "(`product_id_not_in_products`, say).",
        ),
        Column(
            "drift",
            "array<struct<column:string,moved_share:decimal(9,6)>>",
            "By key column: the share of rows that would need another value for the file to be like all files of its "
            "source before it; numbers are compared by their first digit. None for the first file.",
        ),
    ),
)

TABLES = (
    MART_CUSTOMER_360,
    MART_SEGMENT_PROFILES,
    MART_RFM_CELLS,
    MART_DEMOGRAPHICS,
    MART_OUTLIERS,
    MART_DEPARTMENT_WEEKS,
    MART_MODEL_QUALITY,
    MART_MODEL_DECILES,
    MART_MODEL_RULES,
    MART_DATA_QUALITY,
)
