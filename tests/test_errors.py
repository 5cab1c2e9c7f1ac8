"""What of the machine or the lake failed is told in one line, and nothing else is blamed for it."""

import socket

import pytest
from deltalake.exceptions import DeltaError
from py4j.clientserver import ClientServerConnection, JavaParameters, PythonParameters
from py4j.java_gateway import GatewayProperty
from py4j.protocol import Py4JNetworkError

from crm_spark.cli import main
from crm_spark.errors import fault_of_machine

# As the engines and the operating system say it.
DELTA_RS_REFUSED = (
    "Kernel error -> Generic LocalFileSystem error\n  Unable to open file /lake/t/_delta_log/0.json\n"
    "   Permission denied (os error 13)"
)
# With credentials that have expired.
STORE_REFUSED = (
    "Kernel error -> The operation lacked the necessary privileges to complete for path t/_delta_log/0.json: Error "
    "performing GET http://host/b/t/_delta_log/0.json, status 403 Forbidden"
)


def told_of(error: BaseException) -> str:
    return str(fault_of_machine(error))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(5, "Input/output error"), "disk: found one that fails to read or write"),
        (OSError(DELTA_RS_REFUSED), "storage: found a file that this user may not read"),
        (OSError("Generic S3 error: error sending request"), "storage: found a store that does not answer or refuses"),
        (OSError(STORE_REFUSED), "storage: found a store that does not answer or refuses"),
        (RuntimeError("java.nio.file.AccessDeniedException: s3a://b/k"), "storage: found a store that does not answer"),
        (RuntimeError("java.lang.OutOfMemoryError: Java heap space"), "java: found that Spark's memory was full"),
        (RuntimeError("GC overhead limit exceeded"), "java: found that Spark's memory was full"),
        (RuntimeError("Job 3 cancelled because SparkContext was shut down"), "java: found that Spark's process ended"),
    ],
)
def test_what_failed_of_the_machine_is_told(error: Exception, told: str) -> None:
    assert told_of(error).startswith(told)
    assert told_of(error).endswith("run again")


def test_the_file_is_named_at_which_the_machine_failed() -> None:
    assert told_of(PermissionError(13, "Permission denied", "/lake/t")).endswith("run again (met at /lake/t)")


def test_only_a_refused_connection_to_java_is_its_end() -> None:
    with socket.socket() as deaf:  # bound, but nobody listens
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        with pytest.raises(ConnectionRefusedError) as of_others:
            socket.create_connection(("127.0.0.1", port))
        gateway = JavaParameters(port=port), PythonParameters(), GatewayProperty(False, None), None
        to_java = ClientServerConnection(*gateway)
        with pytest.raises(ConnectionRefusedError) as of_java:
            to_java.connect_to_java_server()
    assert fault_of_machine(of_others.value) is None
    assert told_of(of_java.value).startswith("java: found that Spark's process ended")


def test_an_error_of_a_java_that_cannot_be_asked_for_its_text_any_more_is_its_end() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise Py4JNetworkError("Answer from Java side is empty")

    assert told_of(SilentError()).startswith("java: found that Spark's process ended")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            DeltaError("Kernel error: Json error: Truncated"),
            2,
            "lake: found a table whose log cannot be read (DeltaError)",
        ),
        (PermissionError(13, "Permission denied", "/lake/t"), 4, "storage: found a file that this user may not read"),
    ],
)
def test_the_command_ends_in_one_line(
    error: Exception,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("crm_spark.cli.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert (ended.value.code, printed.count("\n")) == (code, 1)
    assert printed.startswith(f"crm-spark: {told}")


def test_what_delta_says_of_the_programs_own_queries_is_no_fault_of_the_lake(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DeltaError("Schema error: No field named nope.")

    monkeypatch.setattr("crm_spark.cli.app", fail)
    with pytest.raises(DeltaError):
        main()
