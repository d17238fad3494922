"""MPS and its rungs by percentage: the daemon, its server, and what is refused before either starts."""

from __future__ import annotations

from hack.generate.failures.failure import (
    AGAIN,
    AGENT,
    LIFE,
    LOADED,
    LOSE,
    MPS,
    POD,
    PREFLIGHT,
    REFUSES,
    STARTS,
    WATCH,
    Failure,
)

ROWS: tuple[Failure, ...] = (
    # ---- MPS --------------------------------------------------------------------------------------------------------
    Failure(
        "MPS",
        "The control daemon dies",
        WATCH,
        LOSE,
        "MPSDaemonDied: its server serves until all workers have moved to a new daemon's; no token is lost",
        (
            f"{LIFE}::test_a_dead_daemon_leaves_its_server_to_the_workers_until_they_have_moved",
            f"{LOADED}::test_a_dead_daemon_is_replaced_beneath_the_running_streams",
        ),
        "nvidia-cuda-mps-control",
    ),
    Failure(
        "MPS",
        "The server dies",
        WATCH,
        f"{MPS}.daemon:Daemon.destroy",
        "MPSServerFault: what is left of it is ended, then a new daemon and all workers begin; no request is lost",
        (f"{LIFE}::test_a_server_that_ends_is_replaced",),
        "nvidia-cuda-mps-server",
    ),
    Failure(
        "MPS",
        "A fatal error of one client puts the server into FAULT, or it does not come back from there",
        WATCH,
        f"{MPS}.daemon:Daemon.destroy",
        "MPSServerFault: as above; all clients are lost, no request is",
        (
            f"{LIFE}::test_a_server_fault_ends_server_and_daemon_before_the_next_begins",
            f"{LIFE}::test_a_server_that_does_not_come_back_from_a_fault_is_replaced",
            f"{LOADED}::test_a_server_fault_takes_every_worker_and_no_request",
        ),
    ),
    Failure(
        "MPS",
        "Daemon or server do not answer, twice in a row",
        f"{MPS}.control:ControlTimeout",
        LOSE,
        "MPSNotResponding: both are ended and replaced; the agent never waits longer than a command's time",
        (f"{LIFE}::test_a_daemon_that_hangs_is_replaced_and_hangs_nobody",),
    ),
    Failure(
        "MPS",
        "MPS is lost five times in a row",
        LOSE,
        f"{MPS}.backend:Mps.health",
        "GPUUnhealthy: the pod is not ready, whoever owns the node is told",
        (f"{LIFE}::test_losses_in_a_row_speak_of_the_gpu",),
    ),
    Failure(
        "MPS",
        "Daemon, server or a first client do not start",
        f"{MPS}.daemon:StartFailed",
        f"{MPS}.keeper:Keeper.run",
        f"MPSStartFailed with the daemon's last words; the engine is not started, {AGAIN}",
        (STARTS,),
    ),
    Failure(
        "MPS",
        "The server serves another user, so that a client waits for ever",
        f"{MPS}.prober:Prober",
        f"{MPS}.keeper:Keeper.run",
        f"MPSStartFailed, with both users' numbers; {AGAIN}",
        (STARTS,),
    ),
    Failure(
        "MPS",
        "Percentages have no effect on what a client sees",
        f"{MPS}.ladder:implausible",
        f"{MPS}.keeper:Keeper.run",
        f"MPSNotEnforcing: the engine is not started; {AGAIN}",
        (STARTS,),
    ),
    Failure(
        "MPS",
        "A killed agent has left directories, sockets and pid files",
        f"{MPS}.daemon:claim",
        f"{MPS}.daemon:claim",
        "each life has directories of its own; those of the dead are removed, those of the living are not",
        (
            f"{LIFE}::test_what_a_killed_agent_left_behind_is_removed",
            f"{LIFE}::test_a_directory_that_another_agent_takes_for_abandoned_is_not_used",
        ),
    ),
    # ---- refused before anything starts -----------------------------------------------------------------------------
    *(
        Failure(
            "start",
            what,
            f"{MPS}.preflight:judge",
            f"{AGENT}.control:SplitController.retry",
            f"{reason}, with its remedy: the engine is not started; looked at again every 30 s",
            tests,
        )
        for what, reason, tests in (
            (
                "No GPU is visible",
                "NoGPU",
                (
                    REFUSES,
                    "tests/unit/test_run_ends.py::test_a_gpu_service_without_a_gpu_ends_with_one_line",
                    "tests/engine/test_device.py::test_cuda_without_a_gpu_is_one_error_with_its_reason_and_remedy",
                ),
            ),
            ("MPS's programs are missing (WSL, gVisor, no toolkit)", "MPSUnavailable", (REFUSES,)),
            ("The agent's user ids differ", "UserMismatch", (REFUSES,)),
            (
                "MIG is enabled",
                "MIGEnabled",
                (REFUSES, f"{POD}::test_a_refusal_starts_nothing_until_partitioning_is_disabled"),
            ),
            ("The compute mode is not Default", "ComputeModeUnsupported", (REFUSES,)),
            (
                "Another MPS daemon is in charge of the GPU",
                "ForeignMPS",
                (REFUSES, f"{PREFLIGHT}::test_a_pipe_is_foreign_only_if_a_daemon_listens_there"),
            ),
            (
                "The directory is missing, not local, or too long for a socket",
                "MPSDirectoryUnusable",
                (REFUSES,),
            ),
        )
    ),
)
