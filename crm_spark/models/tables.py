"""Tables of the models layer: what was fitted, on what, how good it is, and whom it scores how."""

from crm_spark.checks import Check
from crm_spark.tables import Column, Table

_TASK = Column("task", "string", "The prediction task, as the configuration names it.")
_MODEL = Column("model", "string", "The model: logistic_regression, decision_tree or a baseline.")
_FOLD = Column("fold", "string", "train; validation, where choices are made; or test.")
_CUSTOMER = Column("customer_id", "string", "The customer.")
_AS_OF = Column("as_of", "date", "The cut-off.")
_PROBABILITY = Check("probability_within_0_and_1", "probability BETWEEN 0 AND 1")

MODEL_LABELS = Table(
    name="model_labels",
    comment="One row per task, cut-off and customer of the task's population: what happened within its horizon.",
    key=("task", "as_of", "customer_id"),
    columns=(
        _TASK,
        _FOLD,
        _AS_OF,
        _CUSTOMER,
        Column("label", "int", "1 if it happened (churn: nothing was bought), else 0."),
    ),
    checks=(
        Check("label_0_or_1", "label IN (0, 1)"),
        Check("fold_listed", "fold IN ('train', 'validation', 'test')"),
    ),
)

MODEL_REGISTRY = Table(
    name="model_registry",
    comment="One row per model fitted: everything needed to score with it again.",
    key=("task", "model"),
    columns=(
        _TASK,
        _MODEL,
        Column("path", "string", "Where the model is saved, relative to the lake."),
        Column("features", "array<string>", "The columns of feature_customers that it reads."),
        Column("parameters", "array<struct<name:string,value:string>>", "Chosen parameters, and the seed."),
        Column("train_cutoffs", "array<date>", "Cut-offs whose rows it was fitted to."),
        Column("test_cutoff", "date", "The cut-off that it was tested on, once."),
        Column("train_count", "bigint", "Rows it was fitted to."),
        Column("train_event_count", "bigint", "How many of them have label 1."),
        Column("validation_auc", "double", "AUC on the latest training cut-off, fitted to the earlier ones alone."),
        Column("is_champion", "boolean", "The model whose scores analysts see: the best on the validation fold."),
        Column("spark_version", "string", "The version of Spark that fitted it."),
    ),
)

MODEL_RULES = Table(
    name="model_rules",
    comment="One row per leaf of a decision tree: who falls into it, in words, and what it predicts.",
    key=("task", "leaf_no"),
    columns=(
        _TASK,
        Column("leaf_no", "int", "Counts leaves from the left."),
        Column("conditions", "array<string>", "All of them hold for the customers of the leaf."),
        Column("probability", "double", "Share of label 1 among the training rows in the leaf."),
        Column("train_count", "bigint", "Training rows in the leaf."),
    ),
    checks=(_PROBABILITY,),
)

MODEL_COEFFICIENTS = Table(
    name="model_coefficients",
    comment="One row per term of a regression, and its intercept; baselines are regressions on one value or none.",
    key=("task", "model", "term"),
    columns=(
        _TASK,
        _MODEL,
        Column("term_no", "int", "The term's place in the model's matrix, from 0; the intercept is the last."),
        Column("term", "string", "The feature, `feature=category`, `feature=missing` or `intercept`."),
        Column("coefficient", "double", "Change in log odds for one unit of the term as the model scales it."),
        Column("mean", "double", "The term's mean among the training rows, in the same scale; 0 for baselines."),
    ),
)

MODEL_SCORES = Table(
    name="model_scores",
    comment="One row per task, model, cut-off and customer scored, in all folds and at as_of itself.",
    key=("task", "model", "as_of", "customer_id"),
    columns=(
        _TASK,
        _MODEL,
        Column("fold", "string", "train (all cut-offs fitted to), test, or current: at the publication's as_of."),
        _AS_OF,
        _CUSTOMER,
        Column("probability", "double", "Probability of label 1."),
        Column("label", "int", "What happened; NULL where it is not known yet.", nullable=True),
        Column("reasons", "array<string>", "What speaks most for label 1; empty for baselines."),
    ),
    checks=(_PROBABILITY,),
)

MODEL_IMPUTATIONS = Table(
    name="model_imputations",
    comment="One row per use and feature that may be missing in the rows that a model is fitted to.",
    key=("used_by", "feature"),
    columns=(
        Column("used_by", "string", "`tasks.NAME` or `segments`."),
        Column("feature", "string", "The column of feature_customers."),
        Column("rule", "string", "The rule that the configuration declares for it."),
        Column(
            "value",
            "string",
            "What stands where it is missing, and nothing earlier is known if it is filled forward; "
            "NULL where another feature does.",
            nullable=True,
        ),
        Column("missing_count", "bigint", "Rows in which it is missing."),
        Column("row_count", "bigint", "All rows."),
    ),
)

MODEL_OUTLIER_LIMITS = Table(
    name="model_outlier_limits",
    comment="One row per use and feature with a rule for outliers: the limits, whether or not a model is capped there.",
    key=("used_by", "feature"),
    columns=(
        Column("used_by", "string", "`tasks.NAME`, `segments` or, for flags at as_of, `mart_outliers`."),
        Column("feature", "string", "The column of feature_customers."),
        Column("rule", "string", "The rule that the configuration declares for it."),
        Column("low", "double", "Lower values are outliers; NULL: none is too low.", nullable=True),
        Column("high", "double", "Higher values are outliers; NULL: none is too high.", nullable=True),
        Column("is_capped", "boolean", "Whether the model sees the limit in the place of an outlier."),
        Column("flagged_count", "bigint", "Outliers among the rows that the limits are fitted to."),
        Column("row_count", "bigint", "Those of these rows in which the feature is not missing."),
    ),
    checks=(Check("low_up_to_high", "low IS NULL OR high IS NULL OR low <= high"),),
)

MODEL_RFM_CUT_POINTS = Table(
    name="model_rfm_cut_points",
    comment="One row per RFM measure: the values that part its scores 1 to 5.",
    key=("measure",),
    columns=(
        Column("measure", "string", "recency_days, order_count or net_amount."),
        Column("cut_points", "array<double>", "The 20th, 40th, 60th and 80th percentile."),
    ),
)

SCORE_RFM = Table(
    name="score_rfm",
    comment="One row per customer with a purchase before as_of.",
    key=("customer_id",),
    columns=(
        _CUSTOMER,
        _AS_OF,
        Column("recency_score", "int", "5 for those who bought most recently. Equal values, equal scores."),
        Column("frequency_score", "int", "5 for those with most orders."),
        Column("monetary_score", "int", "5 for those who paid most."),
        Column("rfm_segment", "string", "The first RFM segment of the configuration that has these scores."),
    ),
    checks=tuple(
        Check(f"{name}_within_1_and_5", f"{name} BETWEEN 1 AND 5")
        for name in ("recency_score", "frequency_score", "monetary_score")
    ),
)

MODEL_VALUE_LIMITS = Table(
    name="model_value_limits",
    comment="One row per part of the value score whose feature somebody has.",
    key=("part",),
    columns=(
        Column("part", "string", "The part's name in the configuration."),
        Column("feature", "string", "The column of feature_customers."),
        Column("low", "double", "Its 5 % quantile among the customers known at as_of."),
        Column("high", "double", "Its 95 % quantile among them."),
    ),
)

SCORE_VALUE = Table(
    name="score_value",
    comment="One row per customer known before as_of.",
    key=("customer_id",),
    columns=(
        _CUSTOMER,
        _AS_OF,
        Column("value_score", "double", "Weighted mean of the parts, 0 to 1."),
        Column("parts", "array<struct<part:string,score:double>>", "Each part from 0 to 1, in the order of the rules."),
    ),
    checks=(Check("value_score_within_0_and_1", "value_score BETWEEN 0 AND 1"),),
)

SEGMENT_CANDIDATES = Table(
    name="segment_candidates",
    comment="One row per number of segments tried.",
    key=("cluster_count",),
    columns=(
        Column("cluster_count", "int", "Number of segments."),
        Column("silhouette", "double", "Mean silhouette (squared Euclidean): 1 is well apart, 0 is not."),
        Column("cost", "double", "Sum of squared distances to the centres, the best of all starts."),
        Column("is_chosen", "boolean", "True for the highest silhouette."),
        Column("path", "string", "Where the chosen model is saved, relative to the lake.", nullable=True),
        Column("segment_names", "array<string>", "The names of its clusters, in the model's order.", nullable=True),
    ),
)

SEGMENT_CUSTOMERS = Table(
    name="segment_customers",
    comment="One row per customer at as_of.",
    key=("customer_id",),
    columns=(
        _CUSTOMER,
        _AS_OF,
        Column("segment_name", "string", "The segment, named from its profile; one of its own for non-buyers."),
    ),
)

TABLES = (
    MODEL_LABELS,
    MODEL_REGISTRY,
    MODEL_RULES,
    MODEL_COEFFICIENTS,
    MODEL_SCORES,
    MODEL_IMPUTATIONS,
    MODEL_OUTLIER_LIMITS,
    MODEL_RFM_CUT_POINTS,
    SCORE_RFM,
    MODEL_VALUE_LIMITS,
    SCORE_VALUE,
    SEGMENT_CANDIDATES,
    SEGMENT_CUSTOMERS,
)
