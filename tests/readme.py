"""The README's commands as written, in a folder of their own that links to the tree: nobody's own lake is touched."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
_HANGS_AFTER_SECONDS = 1800


def readme_commands() -> list[str]:
    """Every shell command of the README but the one that runs these tests."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [block.strip() for block in blocks if block.strip() != "scripts/test"]


class ReadmeRun:
    """The commands one after the other, in a process beside the tests, until one of them fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("scripts", "conf", "jobs"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(sys.prefix)
        self._logs = {command: folder / f"{number}.log" for number, command in enumerate(readme_commands())}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYSPARK_", "SPARK_"))}
        environment["CRM_SPARK_VENV"] = sys.prefix
        # Now, rather than by the commands, while tests import what it would install.
        subprocess.run([ROOT / "scripts" / "setup", "demo", "test"], env=environment, check=True)
        script = 'while [ $# -gt 0 ]; do bash -c "$1" >"$2" 2>&1 || exit; shift 2; done'
        arguments = [str(part) for pair in self._logs.items() for part in pair]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "readme", *arguments], cwd=folder, env=environment, start_new_session=True
        )

    def outputs(self) -> dict[str, str]:
        """What each command printed, once all have ended."""
        code = self._process.wait(timeout=_HANGS_AFTER_SECONDS)
        printed = {command: log.read_text() for command, log in self._logs.items() if log.exists()}
        assert code == 0, "\n".join(list(printed.items())[-1])
        return printed

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
