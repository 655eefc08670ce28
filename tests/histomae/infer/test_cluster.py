"""A dask cluster embeds what one process would, whatever becomes of its workers.

One local cluster for all: two workers in processes of their own.
"""

import os
import signal
import sys
from contextlib import closing
from dataclasses import replace

import dask
import numpy as np
import pytest

from histomae.errors import ClusterError, DependencyError
from histomae.events import Heartbeat, Note, Progress, result_of
from histomae.exchange.features import read_features
from histomae.infer import cluster as module
from histomae.infer.cluster import Order, embed_on_cluster
from histomae.infer.cohort import embed_cohort, plan_cohort
from histomae.infer.embed import SlideEmbedding
from histomae.infer.embedder import EncoderChoice, open_embedder
from tests.patience import PATIENCE_S, wait_until

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def machines():
    """Two workers of one thread each, forked from a process that has torch already."""
    patience = f"{PATIENCE_S} s"
    settings = {
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.comm.timeouts.connect": patience,
        "distributed.comm.timeouts.tcp": patience,
        "distributed.deploy.lost-worker-timeout": patience,
    }
    with dask.config.set(settings):
        context = distributed.utils.get_mp_context()  # it has a preload of its own
        context.set_forkserver_preload(["distributed", "histomae.infer.cluster"])
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster:
            yield cluster


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", PATIENCE_S)


@pytest.fixture
def choice(checkpoint_path):
    return EncoderChoice(source=str(checkpoint_path), device="cpu", precision="f32")


@pytest.fixture
def embedding(choice):
    return SlideEmbedding(open_embedder(choice), batch_size=4)


@pytest.fixture
def plan(cohort, embedding, tmp_path):
    return result_of(plan_cohort(cohort, embedding, tmp_path / "features"))


@pytest.fixture
def order(embedding, choice):
    return Order.of(embedding, choice)


@pytest.fixture
def alone(plan, embedding, tmp_path):
    """What one process makes of the cohort: the bytes of each file."""
    done = result_of(embed_cohort(plan, embedding))
    data = {path: path.read_bytes() for path in done.written}
    for path in data:
        path.unlink()
    return data


def assert_as_alone(plan, alone):
    for task in plan.tasks:
        found = read_features(task.out)
        written = task.out.read_bytes()
        task.out.write_bytes(alone[task.out])
        expected = read_features(task.out)
        task.out.write_bytes(written)
        assert found.header == expected.header
        np.testing.assert_allclose(found.values, expected.values, atol=1e-6)


def test_workers_embed_what_one_process_would(machines, plan, order, alone, run):
    events, done = run(embed_on_cluster(plan, order, machines.scheduler_address))
    assert set(done.written) == set(alone)
    assert done.failures == ()
    assert_as_alone(plan, alone)
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].done == progress[-1].total == plan.tiles
    notes = sorted(event.text for event in events if isinstance(event, Note))
    assert notes[0] == f"a.tiff: {plan.tasks[0].tiles} tiles"
    assert len(notes) == 3


@pytest.fixture
def slowly(machines):
    """Have the workers take their time, and tell of it often."""

    def slow_down():
        import time

        from histomae.infer import cluster
        from histomae.slides.slide import Slide

        if not hasattr(Slide, "fast"):
            Slide.fast = Slide.read_region

        def read(slide, *args):
            time.sleep(0.05)
            return Slide.fast(slide, *args)

        Slide.read_region, cluster.TELL_EVERY_S = read, 0.02

    def as_before():
        from histomae.slides.slide import Slide

        Slide.read_region = getattr(Slide, "fast", Slide.read_region)

    with distributed.Client(machines, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE_S)
        client.run(slow_down)
        yield client
        client.run(as_before)


def until_some_slides_are_under_way(work):
    return next(e for e in work if isinstance(e, Progress) and e.done)


def test_cancelled_it_stops_within_a_slide(machines, plan, order, slowly):
    work = embed_on_cluster(plan, order, machines.scheduler_address)
    event = until_some_slides_are_under_way(work)
    assert event.done < plan.tasks[0].tiles
    work.close()
    wait_until(
        lambda: not any([*slowly.processing().values(), *slowly.call_stack().values()])
    )
    assert [path for task in plan.tasks for path in task.out.parent.glob("*")] == []


def test_a_killed_worker_costs_nothing_but_time(machines, plan, order, alone, slowly):
    pids = list(slowly.run(os.getpid).values())
    work = embed_on_cluster(plan, order, machines.scheduler_address)
    until_some_slides_are_under_way(work)
    assert not any(task.out.exists() for task in plan.tasks)
    os.kill(pids[0], signal.SIGKILL)
    done = result_of(work)
    assert set(done.written) == set(alone)
    assert done.failures == ()
    assert_as_alone(plan, alone)


def test_a_bad_slide_and_another_encoder_are_told(machines, plan, order, cohort, run):
    cohort[1].write_bytes(b"gone")
    address = machines.scheduler_address
    events, done = run(embed_on_cluster(plan, order, address))
    assert sorted(path.name for path in done.written) == ["a.h5", "c.h5"]
    assert [failure.slide for failure in done.failures] == [cohort[1]]
    assert done.failures[0].reason in [e.text for e in events if isinstance(e, Note)]
    for change, message in (
        ({"encoder_id": "feed"}, "on a worker and feed here"),
        ({"version": "0.0"}, "not 0.0. Install the same version"),
    ):
        done = result_of(embed_on_cluster(plan, replace(order, **change), address))
        assert done.written == ()
        assert all(message in failure.reason for failure in done.failures)


def test_workers_begin_in_another_folder(embedding, checkpoint_path, monkeypatch):
    monkeypatch.chdir(checkpoint_path.parent)
    near = EncoderChoice(source=checkpoint_path.name)
    assert Order.of(embedding, near).choice.source == str(checkpoint_path)
    named = EncoderChoice(source="timm:test_vit", mpp=0.5)
    assert Order.of(embedding, named).choice == named


def test_waiting_it_is_alive(plan, order):
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as empty:
        work = embed_on_cluster(plan, order, empty.scheduler_address)
        with closing(work):
            assert "no worker yet" in next(work).text
            assert isinstance(next(work), Heartbeat)


def test_no_scheduler(plan, order, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 1)
    with pytest.raises(ClusterError, match="Start one with 'dask scheduler'"):
        result_of(embed_on_cluster(plan, order, "tcp://127.0.0.1:9"))
    with pytest.raises(ClusterError, match="No scheduler answers at no address"):
        result_of(embed_on_cluster(plan, order, "no address"))


def test_dask_is_missing(plan, order, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DependencyError, match=r"napari-histomae\[cluster\]"):
        result_of(embed_on_cluster(plan, order, "tcp://127.0.0.1:9"))
