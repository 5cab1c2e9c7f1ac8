"""Columns of files over time: an allowed addition is taken, any other difference is named."""

from collections.abc import Mapping

import pytest
from builders import a_source

from crm_spark.errors import SourceError
from crm_spark.sources.drift import check_columns

BEFORE = {"order_id": "string", "amount": "string"}
OWN = "; files of another form need a source of their own"
RENAMED = f"found no column amount, expected it as in files before (and has new ones: price){OWN}"


def checked(
    *files: Mapping[str, str], before: tuple[Mapping[str, str], ...] = (), **settings: object
) -> dict[str, str]:
    named = {f"{number}.csv": columns for number, columns in enumerate(files)}
    check_columns("shop", a_source("in", **settings), {"order_id", "amount"}, before, named)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"order_id": "string"}, f"found no column amount, expected it as in files before{OWN}"),
        ({"Ann Lee": "string"}, "found none of the columns of files before; has it a header line?"),
        ({"order_id": "string", "price": "string"}, RENAMED),
        (
            BEFORE | {"amount": "double"},
            "found column amount of type double, expected string as before; files of another form need a source of "
            "their own",
        ),
        ({"order_id": "string", "Amount": "string"}, "found column Amount, expected amount as in files before"),
        (
            BEFORE | {"channel": "string"},
            'found a new column channel, expected those of files before; other_columns = "allow" takes it',
        ),
    ],
)
def test_a_difference_from_files_before_is_named_whether_they_came_today_or_long_ago(
    columns: dict[str, str], fault: str
) -> None:
    for files, before in (((columns,), (BEFORE,)), ((BEFORE, columns), ())):
        with pytest.raises(SourceError) as caught:
            checked(*files, before=before)
        assert str(caught.value) == f"sources.shop: file {len(files) - 1}.csv: {fault}"


def test_columns_in_another_order_are_the_same_columns() -> None:
    checked({"amount": "string", "order_id": "string"}, before=(BEFORE,))


def test_an_allowed_column_is_taken_and_files_without_it_still_come() -> None:
    more = BEFORE | {"channel": "string"}
    checked(more, BEFORE, more, before=(BEFORE,), other_columns="allow")
    with pytest.raises(SourceError, match="found no column amount"):
        checked({"order_id": "string", "channel": "string"}, before=(BEFORE, more), other_columns="allow")
    # What is not mapped may go again, for good.
    checked(BEFORE, before=(more,), other_columns="allow")


def test_fields_of_json_may_be_left_out_but_new_ones_need_leave() -> None:
    checked({"order_id": "string"}, before=(BEFORE,), format="json")
    with pytest.raises(SourceError, match="found a new column channel"):
        checked(BEFORE | {"channel": "string"}, before=(BEFORE,), format="json")


def test_the_first_file_of_a_source_may_have_any_columns() -> None:
    checked(BEFORE)
