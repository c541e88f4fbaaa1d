"""The script a person reads: golden files, and hostile words that bash must take for words."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.slurm.cluster import ClusterConfig
from launch.slurm.script import Job, check_run_path, job_name, render
from runtime.errors import UserError
from tests.support.slurm_jobs import golden_jobs

GOLDEN = Path(__file__).parent.parent / "golden"
_SHELL = "'\"$(){}`;&|<> !*?~#a/=é-"
_WORDS = st.text(alphabet=_SHELL + "%\\", min_size=1, max_size=30)
_HOSTILE = st.text(alphabet=_SHELL + "%\\\n\t\r\x00\x1b", min_size=1, max_size=30)


@pytest.mark.parametrize("name", sorted(golden_jobs()))
def test_the_script_is_as_it_was(name: str) -> None:
    assert render(golden_jobs()[name]) == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("name", sorted(golden_jobs()))
def test_bash_reads_it(name: str) -> None:
    subprocess.run(["bash", "-n"], input=render(golden_jobs()[name]), text=True, check=True)


def test_requeue_is_the_last_action() -> None:
    lines = render(golden_jobs()["submit-gpu"]).splitlines()
    after = lines[next(n for n, line in enumerate(lines) if "scontrol requeue" in line) + 1 :]
    assert [line.split()[0] for line in after] == ["sleep", "done", "[", "exit"]


@settings(max_examples=60, deadline=None)
@given(run=st.text(alphabet=_SHELL, min_size=1), python=_WORDS, word=_WORDS, value=_WORDS, scratch=_WORDS)
def test_hostile_words_reach_bash_as_words(run: str, python: str, word: str, value: str, scratch: str) -> None:
    """The script up to its first question is run by a real bash, which prints the words as it has them."""
    values = {"name": "x", "container": [word], "environment": {"VALUE": value}, "scratch": f"/{scratch}"}
    path = Path("/runs") / run.replace("/", "_")
    script = render(Job(path, "n", "single", 1, 1, ClusterConfig.parse(values, "cluster"), python))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    head = script[: script.index("# Where the ranks meet")]
    folder = next(line for line in script.splitlines() if line.startswith("export TMPDIR="))
    told = 'printf \'%s\\0\' "$run" "${python[@]}" "$VALUE" "$TMPDIR"'
    result = subprocess.run(
        ["bash", "-c", f"SLURM_JOB_ID=7\n{head}\n{folder}\n{told}"], capture_output=True, check=True, env={}
    )
    assert result.stderr == b""
    expected = [str(path), word, python, "-P", value, f"/{scratch}".rstrip("/") + "/lacuna-7"]
    assert result.stdout.decode().split("\0")[:-1] == expected


@given(text=_HOSTILE, where=st.sampled_from(["container", "environment", "scratch", "setup", "python", "run"]))
def test_control_characters_are_refused_everywhere(text: str, where: str) -> None:
    text += "\n"
    values = {"container": [text], "environment": {"V": text}, "scratch": f"/{text}", "setup": [text], "python": text}
    with pytest.raises(UserError) as refused:
        check_run_path(Path(text)) if where == "run" else ClusterConfig.parse(
            {"name": "x", where: values[where]}, "cluster"
        )
    assert "\n" not in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(["partition", "account", "qos", "constraint", "memory", "time"]), value=_HOSTILE)
def test_hostile_values_never_reach_a_directive(key: str, value: str) -> None:
    try:
        cluster = ClusterConfig.parse({"name": "x", key: value}, "cluster")
    except UserError:
        return
    header = render(Job(Path("/run"), "n", "single", 1, 1, cluster, "python")).split("\n\n")[0]
    assert not set(value) & set("'\"$`;<>\\\n\t\r !?~#%\x00\x1b")
    assert header.count("\n#SBATCH") == header.count("\n") - 2


@given(run=_HOSTILE)
def test_names_of_jobs_are_plain_and_differ(run: str) -> None:
    run = run.replace("/", "_")
    name = job_name(Path("/runs") / run)
    assert name.isascii()
    assert all(letter.isalnum() or letter in "_.-" for letter in name)
    assert name != job_name(Path("/other") / run)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "name: Field required"),
        ({"name": "a b"}, "name: String should match pattern"),
        ({"name": "x", "partion": "a"}, "unknown key 'partion' (did you mean 'partition'?)"),
        ({"name": "x", "time": "1 day"}, "time: String should match pattern"),
        ({"name": "x", "device": "tpu"}, "device 'tpu' is none of h200, h100, a100"),
        ({"name": "x", "gpus": "none", "device": "h100"}, "gpus: none has no gpu_type and no device"),
        ({"name": "x", "sbatch": ["--output=/tmp/x"]}, "--output is written by lacuna itself"),
        ({"name": "x", "sbatch": ["--wrap=a b"]}, "sbatch.0: String should match pattern"),
        ({"name": "x", "environment": {"A B": "c"}}, "String should match pattern"),
        ({"name": "x", "grace": True}, "grace is true, give a number"),
        ({"name": "x", "setup": ["a\nb"]}, "setup.0: String should match pattern"),
    ],
)
def test_a_cluster_file_that_cannot_be(values: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as refused:
        ClusterConfig.parse(values, "site.yaml")
    assert line in str(refused.value)
    assert "\n" not in json.dumps(str(refused.value))
