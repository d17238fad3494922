"""docs/gpu/failures.md: what can fail while a pod serves on a GPU, who notices, who handles it, and what is left of it.

The table is data: a unit test imports each detector and handler, has pytest collect each test, and demands a row for
each process, each policy of the preflight and each reason by which a partition fails.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    area: str
    what: str
    detector: str
    """``module:name`` of the code that notices."""
    handler: str
    """``module:name`` of the code that acts."""
    outcome: str
    """What users see, and what is lost. A name in it is a reason of the status or an exit."""
    tests: tuple[str, ...]
    """Node ids of tests that make it happen and see the outcome."""
    process: str = ""
    """Which process of the pod has died, if one has."""


AGENT, ENGINE = "semipd_agent", "semipd_engine"
MPS, CORE = f"{AGENT}.partitioner.mps", f"{ENGINE}.core"
LIFE, WORKERS, POD = (f"tests/unit/test_mps_{name}.py" for name in ("lifecycle", "workers", "process"))
LOADED, PREFLIGHT = "tests/unit/test_mps_engine.py", "tests/unit/test_mps_preflight.py"
KILLS, LAUNCHER, RUNGS = (f"tests/engine/test_processes_{name}.py" for name in ("kills", "launcher", "rung_troubles"))
ENDS = "tests/unit/test_worker_ends.py"
CUDA, LANES, GREEN = "tests/unit/cuda/test_green.py", "tests/unit/test_lanes.py", "tests/unit/test_mps_green.py"
STREAMS = "tests/engine/test_processes_green.py"
REFUSED = f"{GREEN}::test_a_refusal_is_told_by_name_and_remedy_and_mps_serves"
TROUBLE = f"{CUDA}::test_trouble_is_no_word_on_green_contexts_and_refuses_them"
HARMED = f"{GREEN}::test_a_refused_self_test_that_has_cost_the_server_costs_the_daemon_and_is_not_tried_again"
STARTS = f"{LIFE}::test_what_does_not_start_says_why_and_starts_once_it_can"
REFUSES = f"{PREFLIGHT}::test_each_refusal_has_its_reason_and_a_remedy"
WATCH, LOSE = f"{MPS}.keeper:Keeper._watch", f"{MPS}.keeper:Keeper._lose"
AGAIN = "starts are tried again, with longer and longer pauses"

FAILURES: tuple[Failure, ...] = (
    # ---- MPS ------------------------------------------------------------------------------------------------------
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
    # ---- workers --------------------------------------------------------------------------------------------------
    Failure(
        "worker",
        "A worker dies: killed from outside, out of memory, a crash",
        f"{CORE}.worker_pool:WorkerPool._died",
        f"{MPS}.backend:Mps.follow",
        "its plan runs again from the last reported step on a new worker; the server is suspect, and a probe decides: "
        "nothing more, or MPSServerFault",
        (
            f"{KILLS}::test_killed_workers_lose_and_repeat_no_token",
            f"{LOADED}::test_a_workers_death_in_mid_step_costs_nobody_else_anything",
            f"{LIFE}::test_a_workers_death_is_followed_by_a_probe",
        ),
        "worker",
    ),
    Failure(
        "worker",
        "After a death another worker stands still, although the server takes a probe",
        f"{MPS}.backend:Mps.follow",
        f"{MPS}.keeper:Keeper.condemn",
        "MPSServerFault: the server is replaced, whatever the probe says",
        (f"{WORKERS}::test_a_peer_that_stands_still_after_a_death_convicts_the_server",),
    ),
    Failure(
        "worker",
        "A step hangs, with kernels in flight",
        f"{CORE}.engine_core:EngineCore._watch_heartbeats",
        f"{MPS}.keeper:Keeper.terminate",
        "WorkerNotResponding after 3 s; after 60 s the worker is shown as `ending`, MPS ends it, and only what is left "
        "then gets a signal; its plan runs elsewhere",
        (
            "tests/engine/test_agent_engine.py::test_a_stopped_worker_is_not_applied",
            f"{ENDS}::test_a_worker_that_does_not_move_is_ended_and_one_that_beats_is_not",
            f"{ENDS}::test_a_client_of_mps_is_shown_before_it_is_killed",
            f"{WORKERS}::test_a_worker_that_must_be_killed_is_ended_by_mps_first",
            f"{RUNGS}::test_a_worker_that_must_be_ended_is_shown_until_somebody_has",
        ),
    ),
    Failure(
        "worker",
        "Several hang at once",
        f"{MPS}.backend:Mps.follow",
        f"{MPS}.keeper:Keeper.terminate",
        "MPS is asked for all of them side by side, each with the time of one",
        (f"{WORKERS}::test_workers_that_hang_are_ended_side_by_side",),
    ),
    Failure(
        "worker",
        "MPS cannot end a client, or refuses to",
        f"{MPS}.control:ControlClient.terminate_client",
        f"{MPS}.keeper:Keeper._end",
        "no answer: MPSServerFault, the server is replaced; a refusal makes it suspect: a probe decides",
        (
            f"{WORKERS}::test_a_client_that_mps_cannot_end_costs_the_server",
            f"{WORKERS}::test_a_refused_end_makes_the_server_suspect",
        ),
    ),
    Failure(
        "worker",
        "One request makes its workers crash, again and again",
        f"{CORE}.fault_isolation:blame",
        f"{CORE}.fault_isolation:is_suspect",
        "it runs alone, and is answered with an error after one more try; the others keep their tokens",
        (
            "tests/engine/test_processes_poison.py::test_a_poisonous_request_is_refused_soon_and_the_others_keep_their_tokens",
        ),
    ),
    Failure(
        "worker",
        "No memory, or no process left, to start one",
        f"{CORE}.worker_pool:WorkerPool.not_spawned",
        f"{CORE}.worker_pool:WorkerPool.not_spawned",
        "SpawnFailed: tried again after a second; weights and the other workers stay",
        (f"{KILLS}::test_a_fork_that_fails_costs_a_pause_and_not_the_weights",),
    ),
    # ---- the proof of a rung --------------------------------------------------------------------------------------
    Failure(
        "rung",
        "A worker runs outside MPS, silently, with the whole GPU",
        f"{CORE}.partitions:contradiction",
        f"{MPS}.backend:Mps.verify",
        "WorkerOutsideMPS: below 100 % it is never ready; at 100 % the list of clients tells",
        (
            f"{RUNGS}::test_a_rung_that_does_not_prove_itself_changes_nothing",
            f"{WORKERS}::test_on_the_whole_rung_the_list_of_clients_is_the_proof",
        ),
    ),
    Failure(
        "rung",
        "A worker sees other SMs than its rung was measured to have",
        f"{CORE}.partitions:contradiction",
        f"{CORE}.partitions:Partitions.unfit",
        "PreparationFailed (SMCountMismatch): the old split serves; ReadbackMismatch where it shows later",
        (
            f"{RUNGS}::test_a_rung_that_does_not_prove_itself_changes_nothing",
            f"{WORKERS}::test_what_a_worker_sees_proves_its_rung",
        ),
    ),
    Failure(
        "rung",
        "A new worker is not ready in time",
        f"{CORE}.worker_pool:WorkerPool.tick",
        f"{CORE}.partitions:Partitions.unfit",
        "PreparationFailed (PrepareTimeout): the old split serves, nothing was stopped for the new one",
        (f"{RUNGS}::test_a_rung_that_hangs_changes_nothing",),
    ),
    Failure(
        "rung",
        "The GPU has no memory for one more context",
        f"{ENGINE}.worker.kernel_gate:gate_kernels",
        f"{CORE}.partitions:Partitions.unfit",
        "PreparationFailed (WarmUpFailed, AttachFailed or WorkerDied): the old split serves",
        (
            "tests/unit/kernels/test_gate.py::test_a_gate_without_memory_says_nothing_of_the_kernels",
            f"{RUNGS}::test_a_rung_that_does_not_prove_itself_changes_nothing",
        ),
    ),
    Failure(
        "rung",
        "The resident's memory does not open in a worker, or is not what it exported",
        f"{ENGINE}.worker.attach:TorchModel.attach",
        f"{CORE}.partitions:Partitions.unfit",
        "PreparationFailed (AttachFailed, KernelsMismatch, WeightsMismatch): the old split serves, and another worker "
        "tries with fresh handles every 10 s",
        (
            "tests/unit/cuda/test_driver_stub.py::test_a_worker_whose_handle_does_not_open_is_unfit",
            "tests/unit/cuda/test_driver_stub.py::test_memory_of_a_process_that_is_gone_does_not_open",
            "tests/engine/test_processes_exec.py::test_a_worker_that_sees_other_weights_never_serves",
        ),
    ),
    Failure(
        "rung",
        "Products, kernels or captured steps are wrong on this card, or under this limit",
        f"{ENGINE}.worker.gemm_gate:gate_products",
        f"{CORE}.partitions:Partitions.unfit",
        "PreparationFailed (WrongProducts, WrongKernels, WrongGraphs): no such worker ever serves",
        (
            "tests/engine/test_gemm_gate.py::test_wrong_products_are_named",
            "tests/unit/kernels/test_gate.py::test_the_gate_names_a_kernel_that_is_wrong_or_does_not_run",
        ),
    ),
    # ---- rungs as streams -----------------------------------------------------------------------------------------
    Failure(
        "green",
        "The driver is too old for green contexts",
        f"{ENGINE}.green.driver:explained",
        f"{MPS}.green:Green.read",
        "GreenContextsUnavailable, with the call that is missing and the remedy: `mps` serves; a worker that meets it "
        "holds the whole device alone (RungLost)",
        (
            f"{CUDA}::test_a_driver_without_green_contexts_is_named",
            REFUSED,
            f"{LANES}::test_what_the_driver_refuses_is_lost_with_its_words",
        ),
    ),
    Failure(
        "green",
        "The driver refuses to split the device",
        f"{ENGINE}.green.driver:Groups",
        f"{MPS}.green:Green.read",
        "as above, with the driver's name of the error",
        (
            f"{CUDA}::test_a_split_that_the_driver_refuses_is_told_with_its_name_for_it",
            REFUSED,
            f"{LANES}::test_a_split_or_a_stream_that_the_driver_refuses_leaves_the_whole_device",
        ),
    ),
    Failure(
        "green",
        "A green context has fewer SMs than were asked for",
        f"{ENGINE}.worker.lanes:open_lanes",
        f"{CORE}.holder:Holder.lacks",
        "the rung leaves the ladder: in the self-test by itself, in a worker as RungLost or SMCountMismatch; the "
        "split before serves, and shares are rounded to what is left",
        (
            f"{CUDA}::test_a_rung_that_the_driver_refuses_or_gives_fewer_sms_is_lost_by_itself",
            f"{LANES}::test_what_the_driver_refuses_is_lost_with_its_words",
            f"{STREAMS}::test_a_rung_that_a_worker_does_not_hold_is_refused_at_once",
            f"{GREEN}::test_rungs_that_the_device_or_a_worker_has_lost_are_chosen_no_more_and_told",
        ),
    ),
    Failure(
        "green",
        "A green context, or its stream, cannot be made",
        f"{ENGINE}.green.driver:Groups.lane",
        f"{CORE}.holder:Holder.lacks",
        "RungLost, as above; nothing of it is left on the device. GreenContextsUnavailable if it is so of every rung",
        (
            f"{CUDA}::test_a_stream_that_cannot_be_made_costs_its_rung_and_its_green_context",
            f"{LANES}::test_a_split_or_a_stream_that_the_driver_refuses_leaves_the_whole_device",
            f"{STREAMS}::test_a_first_partition_whose_rung_is_lost_serves_on_the_whole_device_and_says_so",
        ),
    ),
    Failure(
        "green",
        "The phases' lanes share SMs, or two clients split the device differently",
        f"{ENGINE}.green.probe:together",
        f"{MPS}.green:Green.read",
        "GreenContextsOverlap, with what was seen: `mps` serves",
        (
            f"{CUDA}::test_clients_whose_groups_are_others_are_seen_to_share_sms",
            f"{CUDA}::test_clients_whose_groups_have_other_sizes_do_not_split_alike",
            REFUSED,
        ),
    ),
    Failure(
        "green",
        "Whether the phases' lanes share SMs cannot be seen",
        f"{ENGINE}.green.probe:together",
        f"{MPS}.green:Green.read",
        "`mps-green` serves, and the status says that it was not seen, and why",
        (
            f"{CUDA}::test_what_cannot_be_seen_is_no_proof",
            f"{CUDA}::test_a_device_that_somebody_uses_proves_nothing",
            f"{GREEN}::test_rungs_that_the_device_or_a_worker_has_lost_are_chosen_no_more_and_told",
        ),
    ),
    Failure(
        "green",
        "A client of the self-test hangs, or the test itself",
        f"{ENGINE}.green.probe:Remote.ask",
        f"{MPS}.keeper:Keeper._try_green",
        "GreenProbeFailed: the client is killed and waited for, none outlives the test; `mps` serves if the server "
        "takes a probe then, else MPSStartFailed and a new daemon",
        (
            f"{CUDA}::test_a_client_that_hangs_is_killed_and_buried",
            f"{CUDA}::test_a_client_that_hangs_in_the_driver_does_not_outlive_a_killed_probe",
            REFUSED,
            HARMED,
        ),
    ),
    Failure(
        "green",
        "A client of the self-test crashes, or the test, or says what is no answer",
        f"{ENGINE}.green.probe:Remote.ask",
        f"{MPS}.keeper:Keeper._try_green",
        "GreenProbeFailed, as above; its last words are in the agent's log",
        (TROUBLE, f"{CUDA}::test_what_a_client_prints_besides_its_answers_is_none", REFUSED, HARMED),
    ),
    Failure(
        "green",
        "The self-test loses its context, or MPS ends beneath it",
        f"{ENGINE}.green.probe:examine",
        f"{MPS}.keeper:Keeper._try_green",
        "GreenProbeFailed, with the driver's name of the error, as above",
        (TROUBLE, HARMED),
    ),
    Failure(
        "green",
        "A rung does not prove itself, or finds no memory for its first steps or programs",
        f"{ENGINE}.worker.lanes:Lanes.each",
        f"{CORE}.holder:Holder.lacks",
        "RungLost, with the gate's reason: that rung leaves the ladder, the others serve",
        (
            f"{LANES}::test_a_rung_that_does_not_prove_itself_leaves_the_ladder",
            f"{LANES}::test_a_rung_that_finds_no_memory_is_lost_by_itself",
            f"{LANES}::test_programs_that_take_more_than_is_kept_for_them_cost_a_rung",
            f"{LANES}::test_a_rung_whose_steps_cannot_be_captured_is_lost_and_a_whole_device_is_an_error",
            f"{STREAMS}::test_a_rung_that_a_worker_does_not_hold_is_refused_at_once",
        ),
    ),
    Failure(
        "green",
        "A rung takes the device from its worker while it proves itself",
        f"{ENGINE}.worker.lanes:Lanes.each",
        f"{CORE}.partitions:Partitions.unfit",
        "PreparationFailed (WarmUpFailed), which names the rung: no such worker ever serves, the old split does",
        (
            f"{LANES}::test_a_rung_that_takes_the_device_from_all_makes_the_worker_unfit",
            f"{RUNGS}::test_a_rung_that_does_not_prove_itself_changes_nothing",
        ),
    ),
    Failure(
        "green",
        "The context is lost in a step, and with it all rungs of the phase",
        f"{ENGINE}.worker.attach:TorchModel.is_fatal",
        f"{CORE}.worker_pool:WorkerPool._died",
        "as a worker that died: its plan runs again on its successor, which has every rung; no token is lost",
        (
            "tests/unit/test_device_errors.py::test_after_an_error_of_the_device_the_worker_ends",
            f"{STREAMS}::test_a_worker_that_dies_takes_its_rungs_along_and_its_successor_has_them",
        ),
    ),
    Failure(
        "green",
        "MPS is lost beneath workers that hold rungs",
        WATCH,
        LOSE,
        "as under `mps`, by the same reasons: a new daemon, both workers new, every rung cold until then; what the "
        "self-test found holds, and no request is lost",
        (
            f"{GREEN}::test_a_new_daemon_keeps_what_was_found",
            f"{STREAMS}::test_another_daemon_makes_every_rung_cold_and_both_workers_new",
        ),
    ),
    # ---- the pod's other processes --------------------------------------------------------------------------------
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
    # ---- ends that are asked for ----------------------------------------------------------------------------------
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
    # ---- the device -----------------------------------------------------------------------------------------------
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
    # ---- refused before anything starts ---------------------------------------------------------------------------
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


def failures() -> str:
    lines = [
        "# What can fail on a GPU, and what is left of it then",
        "",
        "<!-- made by `make crd` from hack/generate/failures.py -->",
        "",
        "**Not executed on a GPU yet**: the tests provoke each failure with stand-ins for the driver's programs, and",
        "with real processes. *Detector* is the code that notices, *handler* the code that acts, *outcome* what users",
        "see and what is lost. No worker gets a signal from us before MPS was asked to end it and had its time; the",
        "kernel's own SIGKILL, by which processes follow a dead parent, cannot wait. A probe or self-test that hangs",
        "is killed, and its server looked at, or replaced.",
    ]
    for area in dict.fromkeys(one.area for one in FAILURES):
        lines += [
            "",
            f"## {TITLES[area]}",
            "",
            "| what fails | detector | handler | outcome | tests |",
            "|" + "---|" * 5,
        ]
        for one in FAILURES:
            if one.area == area:
                names = [f"`{symbol.partition(':')[2]}`" for symbol in (one.detector, one.handler)]
                tests = ", ".join(f"`{test.partition('::')[2]}`" for test in one.tests)
                lines.append(f"| {one.what} | {names[0]} | {names[1]} | {one.outcome} | {tests} |")
    return "\n".join(lines) + "\n"


TITLES = {
    "MPS": "MPS",
    "worker": "A worker",
    "rung": "The proof of a rung",
    "green": "Rungs as streams (mps-green)",
    "process": "The pod's other processes",
    "end": "Ends that are asked for",
    "GPU": "The device",
    "start": "Refused before anything starts",
}
