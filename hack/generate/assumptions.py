"""docs/gpu/assumptions.md: what the GPU path takes for granted, who notices if it is not so, and what happens then.

The list is data: the unit tests hold each name in it against the code, and each refusal against the test that provokes
it. An assumption that nothing checks while serving says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumption:
    area: str
    claim: str
    source: str
    detector: str
    """``module:name`` of the code that notices while a pod runs; empty: none."""
    outcome: str
    """The refusal's name (a reason, or an exception), or a word on what is lost."""
    falsified_by: str
    """Name of the test that makes the claim false and sees the outcome, whatever its file; or where a GPU will tell."""
    word: str = ""
    """The outcome as that test names it; empty: in the same word."""


MPS = "semipd_agent.partitioner.mps"
ASSUMPTIONS: tuple[Assumption, ...] = (
    # ---- driver ---------------------------------------------------------------------------------------------------
    Assumption(
        "driver",
        "Calls, structures and numbers are those of CUDA 13's `cuda.h`",
        "NVIDIA's header, 13.0 and 13.1",
        "semipd_engine.memory.driver:SIGNATURES",
        "CudaError",
        "test_errors_have_the_drivers_name_and_number",
    ),
    Assumption(
        "driver",
        "`libcuda.so.1` is there, and `cuInit` answers",
        "CUDA driver API",
        f"{MPS}.prober:Prober",
        "MPSStartFailed",
        "test_what_does_not_start_says_why_and_starts_once_it_can",
        "MPS_START_FAILED",
    ),
    Assumption(
        "driver",
        "NVML shows the GPU, or the device files do",
        "NVIDIA container toolkit",
        f"{MPS}.preflight:judge",
        "NoGPU",
        "test_each_refusal_has_its_reason_and_a_remedy",
    ),
    Assumption(
        "driver",
        "A hardware Xid is told by NVML within the watch's period",
        "NVML events",
        "semipd_agent.gpu.telemetry:NvmlTelemetry.xids",
        "GPUUnhealthy",
        "test_xids_of_an_application_are_suspicion_and_others_condemn",
        "GPU_UNHEALTHY",
    ),
    # ---- MPS ------------------------------------------------------------------------------------------------------
    Assumption(
        "MPS",
        "The daemon's programs match the driver and lie where the toolkit mounts them",
        "container toolkit, `nvc_info.c`",
        f"{MPS}.preflight:judge",
        "MPSUnavailable",
        "test_each_refusal_has_its_reason_and_a_remedy",
    ),
    Assumption(
        "MPS",
        "Daemon, server and clients run in an unprivileged container's PID namespace",
        "reports of others; NVIDIA's own pods use hostPID",
        f"{MPS}.prober:Prober.counts",
        "MPSStartFailed",
        "test_what_does_not_start_says_why_and_starts_once_it_can",
        "MPS_START_FAILED",
    ),
    Assumption(
        "MPS",
        "Real, effective and saved user are one",
        "MPS guide, users",
        f"{MPS}.preflight:judge",
        "UserMismatch",
        "test_each_refusal_has_its_reason_and_a_remedy",
    ),
    Assumption(
        "MPS",
        "Compute mode is Default, so that a process outside MPS may hold the memory",
        "MPS guide, compute modes",
        f"{MPS}.preflight:judge",
        "ComputeModeUnsupported",
        "test_each_refusal_has_its_reason_and_a_remedy",
    ),
    Assumption(
        "MPS",
        "No other daemon is in charge of this GPU",
        "device plugin and toolkit, `/tmp/nvidia-mps`",
        f"{MPS}.preflight:judge",
        "ForeignMPS",
        "test_each_refusal_has_its_reason_and_a_remedy",
    ),
    Assumption(
        "MPS",
        "A percentage limits the SMs that a client sees, to less than 8 below it",
        "MPS guide; the rounding is not documented",
        f"{MPS}.ladder:plausible",
        "MPSNotEnforcing",
        "test_what_does_not_start_says_why_and_starts_once_it_can",
        "MPS_NOT_ENFORCING",
    ),
    Assumption(
        "MPS",
        "A worker on its rung sees the SMs that the probe saw",
        "as above; an unattached client has the whole GPU without an error",
        "semipd_engine.core.partitions:contradiction",
        "SMCountMismatch",
        "test_a_rung_that_does_not_prove_itself_changes_nothing",
    ),
    Assumption(
        "MPS",
        "A worker at 100 % is a client of our server",
        "`get_client_list`; the count proves nothing there",
        f"{MPS}.backend:Mps.verify",
        "WorkerOutsideMPS",
        "test_on_the_whole_rung_the_list_of_clients_is_the_proof",
        "WORKER_OUTSIDE_MPS",
    ),
    Assumption(
        "MPS",
        "`terminate_client` ends a client with kernels in flight and leaves its peers alone",
        "MPS guide, client termination",
        f"{MPS}.keeper:Keeper",
        "MPSServerFault: the server is replaced",
        "test_a_client_that_mps_cannot_end_costs_the_server",
        "cannot be ended",
    ),
    Assumption(
        "MPS",
        "A fault takes every client of the server, and `get_server_status` shows it",
        "MPS guide, error containment",
        f"{MPS}.keeper:Keeper",
        "MPSServerFault: all workers move to a new daemon, no request is lost",
        "test_a_server_fault_ends_server_and_daemon_before_the_next_begins",
        "MPS_SERVER_FAULT",
    ),
    Assumption(
        "MPS",
        "A server whose daemon died serves until its clients have moved",
        "MPS guide says nothing",
        f"{MPS}.keeper:Keeper",
        "MPSDaemonDied; if the server ends, its workers die and their plans run elsewhere",
        "test_a_dead_daemon_leaves_its_server_to_the_workers_until_they_have_moved",
        "MPS_DAEMON_DIED",
    ),
    # ---- green contexts (mps-green) -------------------------------------------------------------------------------
    Assumption(
        "green",
        "The driver has green contexts, for a client of MPS too",
        "CUDA driver API 12.4; a forum's answer that the percentage must be unset or 100",
        f"{MPS}.green:Green.read",
        "GreenContextsUnavailable: `mps` serves, and says so",
        "test_a_driver_without_green_contexts_is_named",
        "GreenContextsUnavailable",
    ),
    Assumption(
        "green",
        "Two clients that make the same split have the same groups in the same order",
        "by inference: no document says it",
        "semipd_engine.green.probe:together",
        "GreenContextsOverlap: `mps` serves, and says so",
        "test_clients_whose_groups_are_others_are_seen_to_share_sms",
        "GreenContextsOverlap",
    ),
    Assumption(
        "green",
        "Kernels of two clients run at the same time, and a block that takes an SM's shared memory has it alone",
        "MPS guide; CUDA's occupancy rules",
        "semipd_engine.green.probe:together",
        "in force, and the status says that it was not seen",
        "test_a_device_that_somebody_uses_proves_nothing",
        "the device is not free",
    ),
    Assumption(
        "green",
        "A green context has the SMs of its groups",
        "CUDA driver API, `cuGreenCtxGetDevResource`",
        "semipd_engine.worker.lanes:open_lanes",
        "RungLost: the rung leaves the ladder",
        "test_what_the_driver_refuses_is_lost_with_its_words",
        "its groups have 64",
    ),
    Assumption(
        "green",
        "A worker's rung has the SMs that the self-test read back",
        "as above",
        "semipd_engine.core.holder:Holder.lacks",
        "SMCountMismatch",
        "test_a_rung_that_a_worker_does_not_hold_is_refused_at_once",
    ),
    Assumption(
        "green",
        "Steps, products and captured programs are right on a stream of a green context",
        "FlashInfer and SGLang run so",
        "semipd_engine.worker.lanes:Lanes.each",
        "RungLost, with the gate's reason",
        "test_a_rung_that_does_not_prove_itself_leaves_the_ladder",
        "WrongProducts",
    ),
    Assumption(
        "green",
        "Agent and worker read one ladder",
        "`SEMIPD_GREEN_RUNGS` is in the worker's environment",
        "semipd_engine.worker.lanes:open_lanes",
        "GreenRungs",
        "test_a_ladder_that_cannot_be_read_makes_a_worker_unfit",
    ),
    Assumption(
        "green",
        "512 MiB hold the captured programs of a worker's rungs",
        "a guess",
        "semipd_engine.worker.lanes:LaneCapture",
        "RungLost (OutOfMemory): one rung after the other goes",
        "test_programs_that_take_more_than_is_kept_for_them_cost_a_rung",
        "OutOfMemory",
    ),
    Assumption(
        "green",
        "The driver's calls come back, in the self-test's forty seconds, and its kernel leaves the context whole",
        "CUDA driver API; a client of a server that serves another user waits for ever",
        "semipd_engine.green.probe:Remote",
        "GreenProbeFailed: the client is killed, the server looked at; `mps` serves, and says so",
        "test_trouble_is_no_word_on_green_contexts_and_refuses_them",
        "GreenProbeFailed",
    ),
    Assumption(
        "green",
        "A rung that is wrong leaves the device to the others",
        "CUDA's sticky errors are a context's, which all lanes of a process share",
        "semipd_engine.worker.lanes:Lanes.each",
        "WarmUpFailed: no such worker serves",
        "test_a_rung_that_takes_the_device_from_all_makes_the_worker_unfit",
        "WarmUpFailed",
    ),
    Assumption(
        "green",
        "What torch, cuBLAS and Triton queue on a green context's stream, or capture on it, stays on its SMs",
        "CUDA driver API; the self-test shows it of a kernel of its own only",
        "",
        "none: the split would protect nobody, and nothing be wrong",
        "gpu-check part `green`, in which each lane has its rate",
    ),
    # ---- IPC ------------------------------------------------------------------------------------------------------
    Assumption(
        "IPC",
        "A handle of a process outside MPS opens in a client, for reading and writing",
        "CUDA driver API; SGLang's and vLLM's shared weights",
        "semipd_engine.worker.attach:TorchModel.attach",
        "AttachFailed",
        "test_a_worker_whose_handle_does_not_open_is_unfit",
    ),
    Assumption(
        "IPC",
        "An allocation of whole 2 MiB pieces has a handle without offset",
        "CUDA IPC documentation, cudaIpcGetMemHandle",
        "semipd_engine.memory.arena:WeightArena.checksum",
        "WeightsMismatch",
        "test_a_worker_that_sees_other_weights_never_serves",
    ),
    Assumption(
        "IPC",
        "torch takes a mapped pointer as it is, without a copy",
        "CUDA array interface, version 3",
        "semipd_engine.memory.cuda:_tensor",
        "AttachFailed",
        "test_torch_that_copies_instead_of_mapping_is_an_error",
        "copied the shared memory",
    ),
    Assumption(
        "IPC",
        "Memory of a dead resident opens nowhere",
        "CUDA driver API: undefined after the exporter's end",
        "semipd_engine.memory.driver:attach",
        "AttachFailed",
        "test_memory_of_a_process_that_is_gone_does_not_open",
        "CUDA_ERROR_INVALID_HANDLE",
    ),
    Assumption(
        "IPC",
        "The memory of the resident, no client of MPS, is intact after a server's fault",
        "MPS guide, by inference",
        "",
        "weights: a new worker's checksum (64 samples); KV entries: none",
        "gpu-check part `kills`, and a fault by hand",
    ),
    # ---- torch and kernels ----------------------------------------------------------------------------------------
    Assumption(
        "torch",
        "Workers run the kernels for which the weights were packed",
        "one image, one environment",
        "semipd_engine.worker.attach:TorchModel.attach",
        "KernelsMismatch",
        "test_a_worker_with_other_kernels_than_the_residents_is_unfit",
    ),
    Assumption(
        "torch",
        "Matrix products are right under an SM limit",
        "wrong ones were seen on an H200 (sglang-omni)",
        "semipd_engine.worker.gemm_gate:gate_products",
        "WrongProducts",
        "test_wrong_products_are_named",
    ),
    Assumption(
        "torch",
        "Our Triton kernels compute on this card what their twins do",
        "interpreter; never executed on a GPU",
        "semipd_engine.worker.kernel_gate:gate_kernels",
        "WrongKernels",
        "test_the_gate_names_a_kernel_that_is_wrong_or_does_not_run",
    ),
    Assumption(
        "torch",
        "A captured decode step gives the bits of its kernels one by one (`SEMIPD_GPU_GRAPHS`)",
        "torch.cuda.graph; never executed on a GPU",
        "semipd_engine.worker.warm_up:warm_up",
        "WrongGraphs",
        "test_a_program_that_gives_other_numbers_is_unfit",
    ),
    Assumption(
        "torch",
        "What a worker imports touches no device and starts no thread, so that a process with it behind it may fork",
        "torch.cuda's lazy initialisation",
        "semipd_engine.worker.zygote:obstacle",
        "workers are started by exec, seconds later",
        "test_who_has_touched_the_device_or_has_threads_forks_no_worker",
        "the imports have touched the device",
    ),
    Assumption(
        "torch",
        "Triton is there, and its launcher from the image, or a C compiler",
        "Triton builds its launchers at first use",
        "semipd_engine.kernels:choose",
        "the twins serve, and `SlowKernels` says why",
        "test_without_a_gpu_or_a_compiler_they_are_refused_by_name",
        "there is none here",
    ),
    Assumption(
        "torch",
        "float32 means float32: no TensorFloat-32 in products",
        "torch, `set_float32_matmul_precision`",
        "semipd_engine.worker.gemm_gate:gate_products",
        "WrongProducts",
        "test_wrong_products_are_named",
    ),
    Assumption(
        "torch",
        "The allocator's segments do not expand, whatever the user has set",
        "pytorch issues 165685, 186213",
        "semipd_engine.resident.cuda_environment:without_mps",
        "cannot be: the setting is overruled",
        "test_segments_do_not_expand_whatever_the_user_set",
        "expandable_segments:False",
    ),
    Assumption(
        "torch",
        "A device's error is told as `AcceleratorError`, or by its words",
        "torch's sources",
        "semipd_engine.worker.attach:TorchModel.is_fatal",
        "a worker that goes on after it: none but its next step's error",
        "gpu-check part `kills`",
    ),
    # ---- the machine ----------------------------------------------------------------------------------------------
    Assumption(
        "machine",
        "The GPU is whole: no MIG",
        "NVML",
        f"{MPS}.preflight:judge",
        "MIGEnabled",
        "test_each_refusal_has_its_reason_and_a_remedy",
    ),
    Assumption(
        "machine",
        "4 GiB hold the contexts of four to six workers",
        "a few hundred MB each, by reports",
        "semipd_engine.memory.kv_size:num_kv_blocks",
        "a worker that finds no room does not get ready (OutOfMemory in its words); the old split serves",
        "gpu-check part `switches`",
    ),
    Assumption(
        "machine",
        "A step's result lies in memory when its tokens have been copied",
        "CUDA's stream order",
        "",
        "none: the hand-over of KV leans on it",
        "gpu-check parts `exact-*`, which compare tokens",
    ),
)
DETECTED, OWED = "Noticed while serving, and provoked by a test here", "Owed: only a GPU can answer"


def proved(one: Assumption) -> bool:
    """Is there a test here that makes it false?"""
    return one.falsified_by.startswith("test_")


def assumptions() -> str:
    lines = [
        "# What the GPU path takes for granted",
        "",
        "<!-- made by `make crd` from hack/generate/assumptions.py -->",
        "",
        "**Not executed on a GPU yet.** Each line is a claim about hardware, driver, MPS, IPC or torch. *Detector* is",
        "the code that notices while a pod serves, *outcome* what users see then: a refusal by name, or an honest",
        "none.",
    ]
    for title, wanted in ((DETECTED, True), (OWED, False)):
        last = "test" if wanted else "where it is looked at"
        lines += ["", f"## {title}", "", f"| area | claim | source | detector | outcome | {last} |", "|" + "---|" * 6]
        for one in ASSUMPTIONS:
            if proved(one) is wanted:
                detector = f"`{one.detector.partition(':')[2]}`" if one.detector else "none"
                where = f"`{one.falsified_by}`" if wanted else one.falsified_by
                lines.append(f"| {one.area} | {one.claim} | {one.source} | {detector} | {one.outcome} | {where} |")
    return "\n".join(lines) + "\n"
