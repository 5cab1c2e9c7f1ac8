"""A small shop: the files of all entities as a company might export them, always the same, and their configuration."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

AS_OF = "2026-10-01"
_OPENED = datetime(2026, 1, 1)  # noqa: DTZ001 (the shop's own clock, as in an export)
_CUSTOMERS = 150
_DAYS = 300
_PRODUCTS = 40

_ORDERS = """
[sources.shop]
entity = "orders"
format = "csv"
path = "{folder}/orders_*.csv"

[sources.shop.columns]
order_id = "order_id"
line_no = "cast(line_no as bigint)"
customer_id = "customer_id"
ordered_at = "cast(sold_at as timestamp)"
product_id = "product_id"
quantity = "cast(quantity as decimal(18, 4))"
amount = "cast(amount as decimal(18, 4))"
known_at = "cast(sold_at as timestamp)"
"""

_OTHERS = """
[sources.register]
entity = "customers"
format = "json"
path = "{folder}/customers.json"

[sources.register.columns]
customer_id = "id"
age_band = "age"
income_band = "income"
known_at = "timestamp '2026-01-01 00:00:00'"

[sources.catalogue]
entity = "products"
format = "csv"
delimiter = ";"
path = "{folder}/products.csv"

[sources.catalogue.columns]
product_id = "product_id"
category = "category"
department = "department"

[sources.campaigns]
entity = "campaigns"
format = "csv"
path = "{folder}/campaigns.csv"

[sources.campaigns.columns]
campaign_id = "campaign_id"
starts_on = "cast(starts_on as date)"
ends_on = "date_add(cast(starts_on as date), 21)"

[sources.mailings]
entity = "contacts"
format = "csv"
path = "{folder}/mailings.csv"

[sources.mailings.columns]
contact_id = "concat_ws('-', campaign_id, customer_id)"
customer_id = "customer_id"
campaign_id = "campaign_id"
known_at = "cast(null as timestamp)"

[sources.redemptions]
entity = "responses"
format = "csv"
path = "{folder}/redemptions.csv"

[sources.redemptions.columns]
response_id = "concat_ws('-', campaign_id, customer_id)"
customer_id = "customer_id"
campaign_id = "campaign_id"
responded_at = "cast(redeemed_at as timestamp)"
known_at = "cast(redeemed_at as timestamp)"
"""


def write_shop(folder: Path, *, orders_only: bool = False) -> Path:
    """Write the files and their configuration, and return the latter's path.

    Among the order lines are one that comes twice, one with an amount that is no number, and one too short.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(7)
    _write_orders(folder, random)
    if not orders_only:
        _write_others(folder, random)
    conf = folder / "shop.toml"
    sources = _ORDERS if orders_only else _ORDERS + _OTHERS
    conf.write_text(f'as_of = {AS_OF}\ncurrency = "EUR"\n' + sources.format(folder=folder))
    return conf


def _write_orders(folder: Path, random: np.random.Generator) -> None:
    lines: list[str] = []
    for customer in range(_CUSTOMERS):
        day = float(random.uniform(0, 60))
        mean_gap_days, last_day = random.uniform(3, 25), random.uniform(100, 2 * _DAYS)
        while day < min(_DAYS, last_day):
            sold_at = _OPENED + timedelta(days=day)
            for line_no in range(1, int(random.integers(2, 6))):
                product, quantity = random.integers(_PRODUCTS), random.integers(1, 4)
                amount = quantity * (0.99 + product / 7)
                lines.append(
                    f"o{customer}-{day:.3f},{line_no},c{customer},{sold_at:%Y-%m-%d %H:%M:%S},"
                    f"p{product},{quantity},{amount:.2f}"
                )
            day += float(random.exponential(mean_gap_days)) + 0.05
    broken = ["o-bad,1,c1,2026-03-01 10:00:00,p1,1,two euros", "o-short,1,c1"]
    thirds = [lines[part::3] for part in range(3)]
    for number, part in enumerate([thirds[0] + broken, thirds[1] + lines[:1], thirds[2]]):
        header = "order_id,line_no,customer_id,sold_at,product_id,quantity,amount"
        (folder / f"orders_{number}.csv").write_text("\n".join([header, *part]) + "\n")


def _write_others(folder: Path, random: np.random.Generator) -> None:
    ages, incomes = ("19-34", "35-54", "55+"), ("low", "middle", "high")
    # Some have registered and never bought.
    customers = [
        {"id": f"c{number}", "age": str(random.choice(ages)), "income": str(random.choice(incomes))}
        for number in range(0, _CUSTOMERS + 10, 2)
    ]
    (folder / "customers.json").write_text("".join(json.dumps(customer) + "\n" for customer in customers))
    products = [f"p{n};category {n % 8};department {n % 3}" for n in range(_PRODUCTS)]
    (folder / "products.csv").write_text("\n".join(["product_id;category;department", *products]) + "\n")
    campaigns, mailings, redemptions = [], [], []
    for number, day in enumerate(range(10, _DAYS, 14)):
        starts_at = _OPENED + timedelta(days=day)
        campaigns.append(f"k{number},{starts_at:%Y-%m-%d}")
        for customer in random.choice(_CUSTOMERS, 60, replace=False):
            mailings.append(f"k{number},c{customer}")
            if random.random() < (0.4 if customer % 3 == 0 else 0.1):
                redeemed_at = starts_at + timedelta(days=float(random.uniform(1, 20)))
                redemptions.append(f"k{number},c{customer},{redeemed_at:%Y-%m-%d %H:%M:%S}")
    (folder / "campaigns.csv").write_text("\n".join(["campaign_id,starts_on", *campaigns]) + "\n")
    (folder / "mailings.csv").write_text("\n".join(["campaign_id,customer_id", *mailings]) + "\n")
    (folder / "redemptions.csv").write_text("\n".join(["campaign_id,customer_id,redeemed_at", *redemptions]) + "\n")
