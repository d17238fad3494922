"""The other processes of the pod, ends that are asked for, and the device."""

from __future__ import annotations

from hack.generate.failures.failure import AGENT, CORE, ENDS, ENGINE, KILLS, LAUNCHER, LIFE, MPS, POD, WORKERS, Failure

ROWS: tuple[Failure, ...] = (
    # ---- the pod's other processes ----------------------------------------------------------------------------------
    Failure(
        "process",
        "The resident dies",
        f"{CORE}.resident_link:ResidentLink._on_close",
        f"{CORE}.worker_pool:WorkerPool.detach",
        "the kernel ends its workers with it, for their memory is gone; weights are loaded again, accepted requests "
        "are computed again, and the server is suspect",
        (
            f"{KILLS}::test_a_killed_resident_loses_no_accepted_request",
            f"{ENDS}::test_a_lost_resident_stops_nobody_although_its_workers_live_on",
        ),
        "resident",
    ),
    Failure(
        "process",
        "Core dies",
        f"{AGENT}.engine_client:CoreGone",
        f"{MPS}.backend:Mps.core_gone",
        "requests in flight end with an error, weights stay; workers have 3 s to leave, MPS ends those that do not, "
        "and only then does the resident kill; the server is suspect",
        (
            f"{KILLS}::test_a_killed_core_comes_back_to_the_same_weights",
            f"{WORKERS}::test_workers_whose_core_is_gone_are_ended_by_mps",
            f"{WORKERS}::test_a_core_that_starts_anew_makes_the_server_suspect",
            "tests/unit/test_resident_ends.py::test_a_worker_whose_core_is_gone_is_left_to_mps_before_it_is_killed",
        ),
        "core",
    ),
    Failure(
        "process",
        "The api dies, or hangs",
        f"{AGENT}.api_probe:ApiProbe.hangs",
        f"{ENGINE}.launcher:Launcher.turn",
        "its connections are lost, their requests are aborted; APINotResponding until another one answers",
        (
            "tests/engine/test_processes_exactness.py::test_a_lost_api_aborts_its_requests_only",
            "tests/engine/test_agent_engine.py::test_an_api_that_hangs_is_killed_and_another_one_answers",
        ),
        "api",
    ),
    Failure(
        "process",
        "The launcher dies",
        f"{AGENT}.supervisor:Supervisor._collect",
        f"{AGENT}.supervisor:Supervisor._run",
        "the kernel ends all of the engine with it; it is started again, CrashLoop where that does not help; the "
        "server is suspect",
        (
            f"{LAUNCHER}::test_a_killed_launcher_leaves_nothing_behind",
            f"{POD}::test_a_launcher_that_dies_makes_the_server_suspect",
            "tests/unit/test_agent_process.py::test_a_launcher_that_cannot_start_is_a_crash_loop_with_its_own_words",
        ),
        "launcher",
    ),
    Failure(
        "process",
        "The agent dies",
        f"{AGENT}.reaper:die_with_parent",
        f"{AGENT}.reaper:die_with_parent",
        "it is the container's first process: the container ends with it, and the kubelet starts another",
        ("tests/unit/test_agent_process.py::test_the_engine_does_not_outlive_a_killed_agent",),
        "agent",
    ),
    # ---- ends that are asked for ------------------------------------------------------------------------------------
    Failure(
        "end",
        "SIGTERM of the pod, and a worker does not go",
        f"{CORE}.worker_pool:WorkerPool.shut_down",
        f"{MPS}.keeper:Keeper.terminate",
        "not ready at once, streams finish; workers, then the resident, then MPS end; a worker that hangs is ended by "
        "MPS before any signal",
        (
            f"{LAUNCHER}::test_sigterm_drains",
            f"{ENDS}::test_at_the_end_too_mps_ends_a_client_before_any_signal",
            f"{POD}::test_start_warm_rung_cold_rung_and_quit",
        ),
    ),
    Failure(
        "end",
        "The engine does not drain in its time, or a second SIGTERM comes",
        f"{AGENT}.supervisor:Supervisor.stop",
        f"{MPS}.keeper:Keeper.evict",
        "all clients are ended by MPS, then what is left of the engine is killed",
        (
            f"{WORKERS}::test_before_the_engine_is_killed_its_clients_are_ended",
            f"{POD}::test_a_second_sigterm_has_mps_end_the_workers_before_anything_is_killed",
        ),
    ),
    # ---- the device -------------------------------------------------------------------------------------------------
    Failure(
        "GPU",
        "The driver reports an Xid that an application causes (13, 31, 43, 45, 68, 109)",
        f"{AGENT}.gpu.telemetry:NvmlTelemetry.xids",
        f"{MPS}.keeper:Keeper.suspect",
        "the server is suspect: a probe decides, nothing more or MPSServerFault",
        (f"{LIFE}::test_xids_of_an_application_are_suspicion_and_others_condemn",),
    ),
    Failure(
        "GPU",
        "The driver reports an Xid of the hardware",
        f"{AGENT}.gpu.xid:is_hardware",
        f"{MPS}.backend:Mps.condemn",
        "GPUUnhealthy: the pod is out of service until somebody deletes it",
        (
            f"{LIFE}::test_xids_of_an_application_are_suspicion_and_others_condemn",
            f"{POD}::test_a_hardware_error_takes_the_pod_out_of_service",
        ),
    ),
    Failure(
        "GPU",
        "The driver has lost the GPU",
        f"{AGENT}.gpu.telemetry:GpuLost",
        f"{MPS}.backend:Mps.condemn",
        "GPUUnhealthy, as above",
        (
            "tests/unit/test_gpu_telemetry.py::test_a_lost_gpu_stops_the_telemetry_and_is_told",
            f"{POD}::test_a_gpu_that_the_driver_has_lost_takes_the_pod_out_of_service",
        ),
    ),
    Failure(
        "GPU",
        "An error of the device in a step",
        f"{ENGINE}.worker.attach:TorchModel.is_fatal",
        f"{ENGINE}.worker.loop:run_worker",
        "the worker ends itself: as a worker that died",
        ("tests/unit/test_device_errors.py::test_after_an_error_of_the_device_the_worker_ends",),
    ),
)
