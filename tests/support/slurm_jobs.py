"""Jobs whose scripts are kept in tests/golden: one of each kind that a script can have."""

from pathlib import Path

from launch.slurm.cluster import ClusterConfig, load_cluster
from launch.slurm.script import Job


def golden_jobs() -> dict[str, Job]:
    """By the name of the golden file, without `.sbatch`."""
    site = ClusterConfig.parse(
        {
            "name": "site",
            "partition": "batch",
            "account": "research",
            "qos": "long",
            "constraint": "h100&ib",
            "cpus_per_task": 4,
            "modules": ["cuda/12.4", "openmpi"],
            "environment": {"NCCL_SOCKET_IFNAME": "ib0", "NOTE": "it's $HOME"},
            "setup": ["ulimit -n 65536"],
            "sbatch": ["--reservation=night"],
            "requeue": False,
        },
        "site",
    )
    common = {"name": "llada-8b", "python": "/opt/lacuna/bin/python"}
    return {
        "submit-gpu": Job(Path("/runs/llada-8b"), layout="megatron tp8 dp8 sp zero1", nodes=8, ranks_per_node=8,
                          cluster=load_cluster("gpu"), tracking=True, exclude=("gpu3", "gpu7"), **common),
        "submit-container": Job(Path("/runs/it's here"), layout="deepspeed dp8 zero3", nodes=2, ranks_per_node=4,
                                cluster=load_cluster("gpu-container"), **common),
        "submit-chain": Job(Path("/runs/a"), layout="megatron dp2 zero1", nodes=1, ranks_per_node=2,
                            cluster=site, time="1-12:00:00", chain=3, **common),
    }  # fmt: skip
