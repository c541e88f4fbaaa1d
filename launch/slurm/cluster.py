"""What a cluster is: a YAML file that is written once and used for every run there.

Values of `#SBATCH` lines are held to the letters that such values have: Slurm reads these lines with rules of its
own, so nothing there is left to quoting. `setup` is shell code by nature and goes into the script as it stands.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.planning.estimate import DEVICES
from runtime.errors import UserError, suggestion
from runtime.settings import Settings, read_yaml

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@:-]*$", max_length=200)]
TimeLimit = Annotated[str, Field(pattern=r"^([0-9]+|[0-9]+:[0-9]{2}(:[0-9]{2})?|[0-9]+-[0-9]{1,2}(:[0-9]{2}){0,2})$")]
_Constraint = Annotated[str, Field(pattern=r"^[A-Za-z0-9_(\[][A-Za-z0-9_.,|&*()\[\]:-]*$", max_length=200)]
_Directive = Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=[A-Za-z0-9_.,:/@+-]+)?$", max_length=200)]
_Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1000)]  # one line, no control characters
_Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+/-]*$", max_length=200)]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]

_OURS = {
    "account", "chdir", "comment", "constraint", "cpus-per-task", "dependency", "error", "exclude", "exclusive",
    "gpus-per-node", "gres", "job-name", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode",
    "output", "parsable", "partition", "qos", "requeue", "signal", "time", "wait", "wrap",
}  # fmt: skip


class BadNodes(Settings):
    """Where nodes that failed a health check are remembered, and for how long.

    `file`: default `lacuna/bad-nodes-NAME.json` below `$XDG_STATE_HOME` (else `~/.local/state`), for all runs.
    """

    file: str | None = None
    days: float = Field(7.0, gt=0)


class ClusterConfig(Settings):
    """A cluster file.

    `gpus`: how GPUs are asked for, or `none` for CPU nodes; `gpu_type`: the type in that request, if the site wants
    one; `device`: what `lacuna plan` knows them as, to check that the run fits their memory. `memory`: per node, as
    Slurm writes it (`0`: all). `grace`: seconds before the time limit at which the ranks are told to save.
    `give_up_after`: attempts in a row without a new checkpoint. `python`: the interpreter on the nodes (default: the
    one that submits). `container`: words of a command that runs what follows it inside an image. `srun_options`:
    more options of the training step. `scratch`: a folder on every node; TMPDIR is a folder of the job in it.
    `health`: whether nodes are only checked before the ranks start, or also measured against each other;
    `health_seconds`: how long that may take. `sbatch`: more `#SBATCH` options.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=64)]
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: _Constraint | None = None
    gpus: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    gpu_type: Name | None = None
    device: str | None = None
    cpus_per_task: int = Field(1, gt=0)
    memory: Annotated[str, Field(pattern=r"^[0-9]+[KMGT]?$")] | None = None
    exclusive: bool = False
    time: TimeLimit = "24:00:00"
    grace: int = Field(300, ge=1, le=65535)
    requeue: bool = True
    give_up_after: int = Field(5, gt=0)
    python: _Text | None = None
    container: list[_Text] = Field(default_factory=list)
    srun_options: list[_Directive] = Field(default_factory=list)
    sbatch: list[_Directive] = Field(default_factory=list)
    modules: list[_Module] = Field(default_factory=list)
    environment: dict[_Variable, _Text] = Field(default_factory=dict)
    setup: list[_Text] = Field(default_factory=list)
    scratch: Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*$", max_length=1000)] | None = None
    health: Literal["checks", "measures"] = "checks"
    health_seconds: int = Field(300, gt=0)
    bad_nodes: BadNodes = BadNodes()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.device is not None and self.device not in DEVICES:
            raise ValueError(f"device {self.device!r} is none of {', '.join(DEVICES)}")
        for option in self.sbatch:
            word = option.removeprefix("--").partition("=")[0]
            if word in _OURS:
                raise ValueError(f"sbatch: --{word} is written by lacuna itself: use the key or option for it")
        if self.gpus == "none" and (self.gpu_type or self.device):
            raise ValueError("gpus: none has no gpu_type and no device: remove them, or set gpus: gpus-per-node")
        return self


def shipped_clusters() -> dict[str, Path]:
    """Names and paths of the cluster files that come with the package."""
    folder = Path(str(resources.files("launch"))) / "clusters"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_cluster(cluster: str) -> ClusterConfig:
    """Read a shipped cluster file or a path. Raises UserError naming the key."""
    shipped = shipped_clusters()
    path = shipped.get(cluster, Path(cluster))
    if not path.is_file():
        known = ", ".join(shipped)
        raise UserError(f"--cluster {cluster!r} is neither a file nor one of {known}{suggestion(cluster, shipped)}")
    return ClusterConfig.parse(read_yaml(path), str(path))
