"""A worker of the engine, and the proof of its rung."""

from __future__ import annotations

from hack.generate.failures.failure import CORE, ENDS, ENGINE, KILLS, LIFE, LOADED, MPS, RUNGS, WORKERS, Failure

ROWS: tuple[Failure, ...] = (
    # ---- workers ----------------------------------------------------------------------------------------------------
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
    # ---- the proof of a rung ----------------------------------------------------------------------------------------
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
)
