"""Whole job scripts under a real bash, with names that want to be commands: every word arrives as the word it is."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.recipe import load_recipe
from launch.slurm.cluster import ClusterConfig
from launch.slurm.script import Job, render
from launch.slurm.submit import Request, _write, prepare
from launch.status import run_statuses
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from tests.support.command_line import lacuna, succeeded

CANARY = "canary"
_PIECES = ["'", '"', " ", "$(touch canary)", "`touch canary`", ";touch canary;", "&&touch canary ", "|touch canary",
           "$HOME", "*", "-rf", "#", "é", "x", "~", "!", "(", "}"]  # fmt: skip
_WORDS = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=6).map("".join)
_LINES = st.lists(st.sampled_from([*_PIECES, "\n", "\r", "\x00", "\x1b", "%", "\\"]), min_size=1, max_size=6)

_STUB = """\
#!/bin/bash
{ for word; do printf '%s\\0' "$word"; done; printf '\\n'; } >>"$RECORD"
case "$*" in
*launch.slurm.begin*) echo 0 ;;
*launch.slurm.verdict*) echo 'end 0' ;;
esac
"""
_SRUN = """\
#!/bin/bash
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
_SCONTROL = """\
#!/bin/bash
[ "$2" = hostnames ] && echo node1
exit 0
"""


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """Commands of Slurm that run what they are given, and a Python that records the words it is started with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"python stub": _STUB, "srun": _SRUN, "scontrol": _SCONTROL, "getent": "#!/bin/bash\n"}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=_WORDS, name=_WORDS, word=_WORDS, value=_WORDS)
def test_a_whole_script_runs_only_its_own_commands(
    stubs: Path, tmp_path: Path, run: str, name: str, word: str, value: str
) -> None:
    path, record = tmp_path / run, tmp_path / "record"
    record.write_bytes(b"")
    (path / "logs" / "0").mkdir(parents=True, exist_ok=True)
    # the container's command is a word of the site; here it starts the stub with a hostile word before all others
    values = {"name": "x", "environment": {"NOTE": value}, "container": [str(stubs / "python stub"), word]}
    script = render(Job(path, name, "single", 1, 1, ClusterConfig.parse(values, "cluster"), "python"))
    variables = {"PATH": f"{stubs}:{os.environ['PATH']}", "RECORD": str(record), "SLURM_JOB_ID": "7"}
    variables |= {"SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURMD_NODENAME": "node1"}
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, check=False, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, b"")
    calls = [line.split("\0")[:-1] for line in record.read_text().split("\n")[:-1]]
    begin = [word, "python", "-P", "-m"]
    assert [call[4] for call in calls] == [f"launch.slurm.{m}" if m != "worker" else "launch.worker"
                                           for m in ("begin", "health", "worker", "verdict")]  # fmt: skip
    assert all(call[:4] == begin and call[5] == str(path) for call in calls)
    assert not (tmp_path / CANARY).exists()
    assert not (path / CANARY).exists()


@settings(max_examples=25, deadline=None)
@given(name=_LINES.map("".join))
def test_hostile_names_of_recipes_and_clusters_are_kept_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("recipe")
    recipe = folder / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"base": "demo", "name": name}))
    assert load_recipe(str(recipe), []).name == name  # it goes into files and MLflow, never to a shell
    with pytest.raises(UserError) as refused:
        ClusterConfig.parse({"name": name + " "}, "cluster")
    assert "\n" not in str(refused.value)


def test_no_secret_of_the_tracking_uri_leaves_the_configuration(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret, run = "pa55-w0rd", tmp_path / "it's $(touch canary) run"
    uri = f"http://me:{secret}@127.0.0.1:9/?api_key={secret}"
    config = load_recipe(str(small_recipe), [f"tracking.uri={uri}", "tracking.enabled=true"])
    cluster = ClusterConfig(name="x", gpus="none")
    prepared = prepare(Request(config, cluster, run, 1, 1))
    directory = RunDirectory(run)
    _write(prepared, directory, "name")
    from launch.slurm.submit import _open_mlflow_run

    _open_mlflow_run(directory)  # its server is refused
    found = run_statuses([run])
    said = "".join(capfd.readouterr()) + repr(found)
    assert "MLflow does not have this run yet" in said
    assert secret not in prepared.script + said
    holders = [path.name for path in run.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holders == ["config.yaml"]
    result = lacuna("train", small_recipe, "--run", run, f"tracking.uri={uri}", "tracking.enabled=true", "--until", "2")
    succeeded(result)
    assert secret not in result.stdout + result.stderr
    holders = [path.name for path in run.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holders == ["config.yaml"]
    assert not list(tmp_path.rglob("canary"))
