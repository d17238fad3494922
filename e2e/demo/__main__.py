"""The order of the acts. `python -m e2e.demo local|existing|embedded`; `e2e/demo/run` decides which.

While Kubernetes and the images are built in the background, the embedded form already answers; what is timed has the
machine to itself. Exit status: 0 if every check passed, 1 if not. The last line is `mode=cluster` or `mode=embedded`.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import ExitStack, nullcontext
from pathlib import Path

from rich.console import Console

from bench.traffic.client import replay_now
from e2e.demo import report
from e2e.demo.acts import answers, auto, cluster, scale, split, streams
from e2e.demo.jobs import Job, Jobs
from e2e.demo.outcome import OUT, REPORT, Abandoned, Outcome, clock
from e2e.demo.reference import read
from e2e.demo.service import Embedded, Service, serve
from e2e.lib.cluster import Cluster
from e2e.lib.helm import SYSTEM
from e2e.lib.kube import CLUSTER, ROOT, Kube
from localkube.state import State

MODEL, REFERENCE = "model", "answers of transformers"
PACKAGES, PROGRAMS, IMAGES = "Debian packages", "Kubernetes programs", "container images"
CASES = OUT / "reference.json"


def background(form: str, console: Console) -> Jobs:
    """What takes long, each with its log under out/demo."""

    def job(name: str, *command: str, needs: tuple[str, ...] = (), nice: int = 10) -> Job:
        log = OUT / f"{name.replace(' ', '-')}.log"
        return Job(name, [sys.executable, *command], log, ROOT, needs, nice)

    jobs = [
        job(MODEL, "e2e/lib/models.py", "smollm2", nice=0),
        job(REFERENCE, "-m", "e2e.demo.reference", str(CASES), needs=(MODEL,), nice=5),
    ]
    if form == "local":
        jobs += [
            job(PACKAGES, *CLUSTER[1:], "deps"),
            job(PROGRAMS, "hack/cluster/tools", "build"),
            job(IMAGES, "images/build", needs=(PACKAGES,)),
        ]
    return Jobs(jobs, console)


def first_acts(outcome: Outcome, jobs: Jobs, started: float) -> Path:
    """The engine by itself: an answer, the lanes, the tokens of transformers. Returns the model's folder."""
    with outcome.act("A model answers"):
        jobs.wait(MODEL)
        model = Path(jobs.jobs[MODEL].last_line())
        shares = {"prefill-share": 50, "decode-share": 50}
        with serve(model, OUT / "engine.log", streams.COMMON | shares) as url:
            answers.question(outcome, lambda plan: replay_now(plan, url), "engine alone")
            outcome.facts["first answer"] = f"{clock(time.time() - started)} minutes after the start"
            outcome.console.print(f"  first answer {outcome.facts['first answer']}")
            with outcome.act("The point: four streams, and a long prompt arriving"), jobs.suspended():
                streams.streams(outcome, model, url)
            with outcome.act("The same tokens as transformers"):
                jobs.wait(REFERENCE)
                answers.greedy(outcome, lambda plan: replay_now(plan, url), read(CASES), "engine alone")
    return model


def service_acts(outcome: Outcome, service: Service) -> None:
    """What a SemiPDService does, wherever it runs."""
    with outcome.act(f"The same question, {service.where}"):
        answers.question(outcome, service.send, service.where)
        answers.greedy(outcome, service.send, read(CASES), service.where)
    with outcome.act(f"A patched split, {service.where}"):
        split.patched(outcome, service)
    with outcome.act(f"Auto under load, {service.where}"):
        auto.auto(outcome, service)


def embedded_acts(outcome: Outcome, model: Path) -> None:
    with ExitStack() as until_the_end:
        with outcome.act("A SemiPDService without Kubernetes: semipd run"):
            service = until_the_end.enter_context(Embedded(model, OUT / "semipd-run").run())
        service_acts(outcome, service)


def cluster_acts(outcome: Outcome, jobs: Jobs, model: Path, *, local: bool) -> None:
    kube = Cluster(State.default()) if local else Kube()
    if local:
        with outcome.act("Kubernetes is built"):
            jobs.wait(PACKAGES, PROGRAMS, IMAGES)
        with outcome.act("A real cluster"):
            images = {image.rsplit("/", 1)[1].split(":")[0]: image for image in built(jobs.jobs[IMAGES])}
            host = Kube()
            host.exec(*CLUSTER, "up")
            host.exec(*CLUSTER, "load", *images.values())
            cluster.show(outcome, kube, "get", "nodes")
    else:
        registry = os.environ["REGISTRY"].rstrip("/")
        images = {name: f"{registry}/{name}:dev" for name in ("operator", "engine")}
    with outcome.act("The operator, by Helm"):
        cluster.install(outcome, kube, images, local=local)
    with outcome.act("kubectl apply"):
        service = cluster.deploy(outcome, kube, model, local=local, engine_image=images["engine"])
    # Clients inside the local cluster use the Service's address; elsewhere a port is forwarded to it.
    with nullcontext() if local else service.forward(OUT / "port-forward.log"):
        outcome.facts["address"] = service.url()
        service_acts(outcome, service)
        with outcome.act("More pods while the load needs them"):
            scale.scale(outcome, service, kube, local=local)
    with outcome.act("What the status tells"):
        cluster.show(outcome, kube, "-n", cluster.NAMESPACE, "get", "spd", "-o", "wide")


def built(job: Job) -> list[str]:
    """The image names that `images/build` printed."""
    return [line for line in job.log.read_text().splitlines() if line.startswith("localhost/")]


def farewell(outcome: Outcome, form: str, model: Path | None) -> None:
    """What to try next."""
    inside = "" if form == "existing" else "hack/cluster/cluster exec -- "
    name, question = "smollm2", '"Why is the sky blue?"'
    patch = '\'{"spec":{"partition":{"mode":"Manual","prefillPercent":30,"decodePercent":90}}}\''
    if outcome.mode == "cluster":
        address = outcome.facts.get("address", "http://ADDRESS:8000")
        ask = f"{inside}.venv/bin/python -m bench.traffic ask {address} {question}"
        commands = [
            f"{inside}kubectl -n {cluster.NAMESPACE} get spd -w",
            f"{inside}kubectl -n {cluster.NAMESPACE} patch spd {name} --type merge -p {patch}",
            ask if form == "local" else f"kubectl -n {cluster.NAMESPACE} describe spd {name}",
        ]
    else:
        commands = [
            f".venv/bin/semipd run -f examples/cpu.yaml --set model.uri=file://{model}",
            f".venv/bin/python -m bench.traffic ask http://127.0.0.1:8000 {question}",
            ".venv/bin/python -m bench.traffic trace http://127.0.0.1:8000 bench/traces/azure2023_conv.csv.gz "
            "--rate 0.5 --seconds 60 --length-scale 0.1",
        ]
    say = outcome.console.print
    say("\n[bold]Try next[/]")
    for command in commands:
        say(f"  {command}", markup=False, highlight=False, soft_wrap=True)
    if form == "local":
        say("The cluster stays up; `make demo-down` ends it.")
    elif form == "existing":
        say(f"To end it: kubectl delete ns {cluster.NAMESPACE}; helm uninstall -n {SYSTEM} semipd")


def main() -> int:
    form = sys.argv[1]
    started = float(os.environ.get("DEMO_STARTED") or time.time())
    OUT.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 110)
    outcome = Outcome(console, mode="embedded" if form == "embedded" else "cluster")
    outcome.started -= time.time() - started
    jobs = background(form, console)
    jobs.start()
    model: Path | None = None
    try:
        model = first_acts(outcome, jobs, started)
        if form == "embedded":
            embedded_acts(outcome, model)
        else:
            cluster_acts(outcome, jobs, model, local=form == "local")
    except Abandoned:
        pass
    except Exception as error:
        (OUT / "traceback.log").write_text(traceback.format_exc())
        outcome.check("the demo itself", False, f"{type(error).__name__}: {error} (see out/demo/traceback.log)")
    finally:
        jobs.stop()
    outcome.facts |= report.machine_facts()
    seconds = time.time() - started
    REPORT.write_text(report.render(outcome, seconds=seconds, date=report.now()))
    console.print("\n[bold]Summary[/]")
    for check in outcome.checks:
        console.print(f"{'PASS' if check.ok else 'FAIL'}  {check.name}", markup=False, highlight=False)
    console.print(f"{clock(seconds)} minutes; the report: {REPORT.relative_to(ROOT)}", highlight=False)
    farewell(outcome, form, model)
    print(f"mode={outcome.mode}", flush=True)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
