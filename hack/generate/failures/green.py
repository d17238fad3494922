"""Rungs as streams (`mps-green`)."""

from __future__ import annotations

from hack.generate.failures.failure import (
    CORE,
    CUDA,
    ENGINE,
    GREEN,
    HARMED,
    LANES,
    LOSE,
    MPS,
    REFUSED,
    RUNGS,
    STREAMS,
    TROUBLE,
    WATCH,
    Failure,
)

ROWS: tuple[Failure, ...] = (
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
        f"{ENGINE}.green.self_test:together",
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
        f"{ENGINE}.green.self_test:together",
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
        f"{ENGINE}.green.self_test:examine",
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
)
