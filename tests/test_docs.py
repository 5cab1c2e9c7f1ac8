"""What is written about the code follows from it."""

from pathlib import Path

from crm_spark.refresh import LAYER_TABLES
from crm_spark.tables import data_dictionary

ROOT = Path(__file__).parent.parent


def test_the_data_dictionary_is_that_of_the_declarations() -> None:
    written = (ROOT / "docs" / "data-dictionary.md").read_text()
    assert written == data_dictionary(LAYER_TABLES), "run: crm-spark dictionary > docs/data-dictionary.md"


def test_every_column_says_what_it_means() -> None:
    columns = [column for _, tables in LAYER_TABLES for table in tables for column in table.columns]
    assert all(column.comment.endswith((".", ")")) for column in columns)


def test_table_names_are_unique() -> None:
    names = [table.name for _, tables in LAYER_TABLES for table in tables]
    assert len(names) == len(set(names))
