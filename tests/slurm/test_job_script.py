"""The script a person reads: golden files, and hostile words that bash must take for words."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.slurm.cluster import ClusterConfig
from launch.slurm.script import Job, check_run_path, job_name, render
from launch.slurm.unable_nodes import forget_unable_nodes, unable_nodes
from pretrain.run_directory import RunDirectory
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
    after = lines[next(n for n, line in enumerate(lines) if "scontrol requeue" in line) + 1 : lines.index("}", 60)]
    assert [line.split()[0] for line in after] == ["sleep", "done", "#", "for", "[", "sleep", "done", "exit"]
    assert lines[-1] == 'finish "$action" "$result" "$exclude"'


def _unable(folder: Path, chain: int = 1, code: int = 127) -> tuple[int, list[str]]:
    """Run a script on node1, whose Python ends with `code` and no word. Returns the exit code, and what Slurm is told.

    Slurm's commands and `sleep` only note their words; a list of nodes is taken at the third time.
    """
    note = f'#!/bin/bash\necho "${{0##*/}} $*" >>"{folder}/told"\n'
    update = '[[ "$*" != *ExcNodeList* ]] || [ "$(grep -c ExcNodeList= "${0%/*}/told")" -ge 3 ]'
    shown = "[ $1 != show ] || echo '   ReqNodeList=(null) ExcNodeList=node[7-8]'"
    programs = {"python": f"#!/bin/bash\nexit {code}\n", "sleep": "#!/bin/bash\n", "getent": "#!/bin/bash\n",
                "scancel": note, "squeue": f"{note}echo 8\n", "scontrol": f"{note}{shown}\n{update}\n"}  # fmt: skip
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "run/logs").mkdir(parents=True, exist_ok=True)
    cluster = ClusterConfig(name="x", give_up_after=2)
    script = render(Job(folder / "run", "n", "single", 1, 1, cluster, str(folder / "python"), chain=chain))
    variables = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node1"}
    variables |= {"SLURM_JOB_NAME": "me", "SLURM_JOB_NODELIST": "node1"}
    (folder / "told").unlink(missing_ok=True)
    result = subprocess.run(["bash", "-c", script], env=variables, check=False, timeout=60, stderr=subprocess.DEVNULL)
    return result.returncode, [line for line in (folder / "told").read_text().splitlines() if " show " not in line]


def test_a_job_whose_first_node_has_no_python_goes_elsewhere_until_it_is_given_up(tmp_path: Path) -> None:
    away = "scontrol update JobId=7 ExcNodeList=node[7-8],node1"
    assert _unable(tmp_path) == (75, ["scontrol requeue 7", away, away, away])
    assert unable_nodes(RunDirectory(tmp_path / "run")) == {
        "node1": "the job's script could not start an attempt (code 127)"
    }
    assert _unable(tmp_path) == (127, [])
    forget_unable_nodes(RunDirectory(tmp_path / "run"))
    links = ["squeue --noheader --states=PENDING --name=me --format=%A"]
    assert _unable(tmp_path, 2, 126) == (126, [*links, "scontrol update JobId=8 ExcNodeList=node[7-8],node1"])
    assert _unable(tmp_path, 2, 126) == (126, ["scancel --state=PENDING --name=me"])
    assert _unable(tmp_path, 2, 143) == (143, [])  # ended, not unable


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
