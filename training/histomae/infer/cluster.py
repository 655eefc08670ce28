"""Slides over many machines, through dask.distributed: one task for each slide.

Scheduler and workers are whatever the user has started. All must see slides, weights
and results under the same paths. A worker computes as many slides at a time as it has
threads, each with one; one that dies costs nothing but time, since dask has another do
its slides again.
"""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from histomae import __version__
from histomae.errors import ClusterError, DependencyError, HistomaeError
from histomae.events import Heartbeat, Note, Progress
from histomae.infer.cohort import CohortMeter, Embedded, Failure, embed_task
from histomae.infer.embed import SlideEmbedding
from histomae.infer.embedder import EncoderChoice, open_embedder
from histomae.models.initial import TIMM

if TYPE_CHECKING:
    from collections.abc import Generator

    from histomae.events import Event
    from histomae.infer.cohort import CohortPlan, SlideTask

#: A worker tells how far it is, and asks whether to stop, so often.
TELL_EVERY_S = 0.5
#: The one who waits is alive at least so often.
HEARTBEAT_S = 0.2
CONNECT_S = 10


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every worker must know to embed as this machine would."""

    choice: EncoderChoice
    encoder_id: str
    pooling: str | None
    min_tissue: float
    batch_size: int | None
    version: str = __version__

    @classmethod
    def of(cls, embedding: SlideEmbedding, choice: EncoderChoice) -> Order:
        """Return the order to embed in this way, with the encoder of that choice."""
        if not choice.source.startswith(TIMM):  # a worker begins in another folder
            path = Path(choice.source).expanduser().absolute()
            choice = replace(choice, source=str(path))
        return cls(
            choice=choice,
            encoder_id=embedding.encoder.encoder_id,
            pooling=embedding.pooling,
            min_tissue=embedding.min_tissue,
            batch_size=embedding.batch_size,
        )


# On this machine -------------------------------------------------------------


def embed_on_cluster(
    plan: CohortPlan, order: Order, address: str
) -> Generator[Event, None, Embedded]:
    """Embed the slides of a plan on the workers of a scheduler.

    Closing the generator cancels what is not done; workers stop within a second.

    Parameters
    ----------
    address
        Of the scheduler, such as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    DependencyError
        If dask.distributed is not installed.
    ClusterError
        If there is no scheduler at the address, or it goes away.
    """
    told: SimpleQueue[Any] = SimpleQueue()
    with ExitStack() as stack:
        client = stack.enter_context(_client(address))
        if not client.scheduler_info()["workers"]:
            yield Note(f"{address} has no worker yet; waiting for one.")
        topic = f"histomae-{uuid.uuid4().hex}"
        client.subscribe_topic(topic, told.put)
        stack.callback(client.unsubscribe_topic, topic)
        waiting = {}
        for number, task in enumerate(plan.tasks):
            future = client.submit(
                embed_here, _anywhere(task), order, topic, number, pure=False
            )
            waiting[future.key] = future, task
            future.add_done_callback(told.put)
        stack.callback(_cancel, client, topic, waiting)
        return (yield from _awaited(plan, waiting, told, address))


def _awaited(
    plan: CohortPlan,
    waiting: dict[str, tuple[Any, SlideTask]],
    told: SimpleQueue[Any],
    address: str,
) -> Generator[Event, None, Embedded]:
    meter = CohortMeter(plan.tiles)
    written: list[Path] = []
    failures: list[Failure] = []
    while waiting:
        try:
            news = told.get(timeout=HEARTBEAT_S)
        except Empty:
            yield Heartbeat()
            continue
        if isinstance(news, tuple):  # (time, what a worker said)
            number, done = news[1]
            task = plan.tasks[number]
        elif news.key not in waiting:
            continue
        else:
            _, task = waiting.pop(news.key)
            done = task.tiles
            if reason := _reason(news, address):
                failures.append(Failure(task.slide, reason))
                yield Note(reason)
            else:
                written.append(task.out)
                yield Note(f"{task.name}: {task.tiles} tiles")
        yield meter.at(task, done)
    return Embedded(tuple(written), tuple(failures))


def _reason(future: Any, address: str) -> str:
    """Return why a slide failed; empty if it did not."""
    if future.status == "finished":
        return str(future.result())
    if future.status != "error":
        raise ClusterError(
            f"The scheduler at {address} has gone. What is done is kept: start it, and "
            "do the same again."
        )
    error = future.exception()
    if isinstance(error, ImportError):
        return (
            f"A worker cannot load histomae ({error}). Install the same version there."
        )
    return f"{type(error).__name__} on a worker: {error}"


def _client(address: str) -> Any:
    try:
        import distributed
    except ImportError as error:
        raise DependencyError(
            "dask.distributed is missing. Install it here and on every worker: pip "
            "install napari-histomae[cluster]"
        ) from error
    try:
        return distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No scheduler answers at {address} ({error!s:.200}). Start one with 'dask "
            "scheduler', and give the address that it prints."
        ) from error


def _cancel(client: Any, topic: str, waiting: dict[str, tuple[Any, SlideTask]]) -> None:
    if waiting and client.status == "running":
        import distributed

        distributed.Event(topic, client=client).set()
        client.cancel([future for future, _ in waiting.values()], force=True)


def _anywhere(task: SlideTask) -> SlideTask:
    return replace(task, slide=task.slide.absolute(), out=task.out.absolute())


# On a worker -----------------------------------------------------------------


def embed_here(task: SlideTask, order: Order, topic: str, number: int) -> str:
    """Embed one slide; return why it could not be done, empty if it was."""
    import distributed

    worker, stop = distributed.get_worker(), distributed.Event(topic)
    last = time.monotonic()
    try:
        with closing(embed_task(task, _embedding(order))) as work:
            for event in work:
                if not isinstance(event, Progress):
                    continue
                if time.monotonic() - last < TELL_EVERY_S:
                    continue
                last = time.monotonic()
                if stop.is_set():
                    return "It was cancelled."
                worker.log_event(topic, (number, event.done))
    except HistomaeError as error:
        return str(error)
    return ""


def _embedding(order: Order) -> SlideEmbedding:
    with _loading:
        return _loaded(order)


_loading = threading.Lock()


@lru_cache(maxsize=1)
def _loaded(order: Order) -> SlideEmbedding:
    if order.version != __version__:
        raise ClusterError(
            f"A worker has napari-histomae {__version__}, not {order.version}. Install "
            "the same version everywhere."
        )
    encoder = open_embedder(order.choice)
    if encoder.encoder_id != order.encoder_id:
        raise ClusterError(
            f"{order.choice.source} is {encoder.encoder_id} on a worker and "
            f"{order.encoder_id} here. Give a path that is the same file everywhere."
        )
    return SlideEmbedding(encoder, order.pooling, order.min_tissue, order.batch_size)
