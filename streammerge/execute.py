"""Plan → bytes: one pipeline that reads, merges, hashes and writes at once, in bounded memory.

    dispatch ──> readers ──> workers ──┬─> hashers ─┐
       ↑         (a few      (merge    └─> writer ──┤
       │          inputs      windows)              │
       │          each)                             │
       └───────────── frames come back ─────────────┘

A frame holds the buffers of one window. There are only `layout.frames` of them, allocated once; a
window waits until a frame comes back, so memory is bounded and no stage runs far ahead. Nothing
here decides what a byte of the output is: block size, threads and device never change the bits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue

from streammerge.batches import batches
from streammerge.budget import Layout
from streammerge.buffers import Flight, Frame
from streammerge.checkpoint import Checkpoint
from streammerge.finishing import Finisher
from streammerge.lanes import make_lane, pin
from streammerge.merging import Merger
from streammerge.methods import threads as torch_threads
from streammerge.openfiles import OpenFiles
from streammerge.outputs import Output, WrittenShard
from streammerge.plan import OutputTensor, Plan
from streammerge.reading import Filling
from streammerge.report import Report
from streammerge.storage import IoMode
from streammerge.wholes import Wholes
from streammerge.windows import Window, cut_stretches

MAX_READERS = 4
_Queue = SimpleQueue[Flight | None]


class Pipeline:
    """Executes a plan.

    Args:
        plan, checkpoints: what to do, and its opened inputs.
        layout: number and size of the buffers.
        output: where it goes.
        kept: shards that are there already; see `Output.begin`.
        io, device: how inputs are read, and where blocks are merged.
        allow_nonfinite: pass NaN and Inf on instead of refusing them.
        progress: called with the bytes read and written for each window.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoints: Sequence[Checkpoint],
        layout: Layout,
        output: Output,
        kept: Sequence[WrittenShard] = (),
        *,
        io: IoMode = "auto",
        device: str = "cpu",
        allow_nonfinite: bool = False,
        progress: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        self._plan, self._checkpoints, self._layout = plan, checkpoints, layout
        self._kept, self._io, self._device = {shard.file for shard in kept}, io, device
        self._report = Report()
        wholes = Wholes(checkpoints, io, self._report.read_modes, layout.at_once)
        self._merger = Merger(plan, wholes, allow_nonfinite)
        self._rereads = any(step.passes for step in plan.steps)
        self._output = output
        self._finisher = Finisher(plan, output, list(kept), self._merger.nonfinite)
        self._progress = progress
        self._readers = min(len(checkpoints), MAX_READERS)
        self._abreast = 1 if output.one_by_one else layout.abreast
        self._free: _Queue = SimpleQueue()
        self._to_read: list[_Queue] = [SimpleQueue() for _ in range(self._readers)]
        self._to_merge: _Queue = SimpleQueue()
        self._to_hash: list[_Queue] = [SimpleQueue() for _ in range(self._abreast)]
        self._to_write: _Queue = SimpleQueue()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def run(self) -> Report:
        """Write all shards.

        Raises:
            StreammergeError: the first failure of any stage; all threads have ended by then.
        """
        begin, layout = time.perf_counter(), self._layout
        flights = [Flight(Frame(layout.slots, layout.window)) for _ in range(layout.frames)]
        buffers = [memory for flight in flights for memory in flight.frame.memories()]
        unpin = pin(buffers, self._device)
        for flight in flights:
            self._free.put(flight)
        threads = self._start_threads()
        try:
            self._dispatch()
        except BaseException as error:
            self._fail(error)
        finally:
            for queue in self._queues():
                for _ in range(layout.workers):
                    queue.put(None)
            for thread in threads:
                thread.join()
            unpin()
            torch_threads.restore()
        if self._failure is not None:
            raise self._failure
        self._report.shards = sorted(self._finisher.shards, key=lambda shard: shard.file)
        self._report.seconds = time.perf_counter() - begin
        return self._report

    def _start_threads(self) -> list[threading.Thread]:
        loops: list[tuple[str, Callable[[], None]]] = [
            *((f"reader-{i}", lambda i=i: self._read_loop(i)) for i in range(self._readers)),
            *((f"worker-{i}", self._work_loop) for i in range(self._layout.workers)),
            *((f"hasher-{i}", lambda i=i: self._hash_loop(i)) for i in range(self._abreast)),
            ("writer", self._write_loop),
        ]
        threads = [
            threading.Thread(target=self._guard, args=(loop,), name=name, daemon=True)
            for name, loop in loops
        ]
        for thread in threads:
            thread.start()
        return threads

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure and wake whoever waits on a queue."""
        with self._lock:
            if self._failure is None:
                self._failure = error
        for queue in self._queues():
            queue.put(None)
        self._output.stop()
        self._stop.set()

    def _queues(self) -> list[_Queue]:
        return [self._free, *self._to_read, self._to_merge, *self._to_hash, self._to_write]

    def _flights(self, queue: _Queue) -> Iterator[Flight]:
        """Yield what comes over a queue until the end of the merge, or a failure."""
        while (flight := queue.get()) is not None and self._failure is None:
            yield flight
        queue.put(None)  # for the next thread on the same queue

    def _dispatch(self) -> None:
        """Send out the windows of the output, and before them those of what is to be measured."""
        measurements, size = self._merger.measurements, self._layout.window
        cut = batches(self._plan, self._checkpoints, size, self._kept, self._abreast)
        for measured, windows in cut:
            measurements.begin(measured)
            again: list[OutputTensor] = measured
            while again:
                self._send(cut_stretches(self._plan, self._checkpoints, again, size))
                self._drain()
                again = measurements.end_round(again)
            self._send(windows)
        self._drain()

    def _send(self, windows: Iterable[Window]) -> None:
        """Load a free frame with each window in turn."""
        free = self._flights(self._free)
        for window, flight in zip(windows, free, strict=False):
            flight.window = window
            flight.views = [[] for _ in self._checkpoints]
            flight.wait_for(self._readers)
            for queue in self._to_read:
                queue.put(flight)

    def _drain(self) -> None:
        """Wait for all frames to come back."""
        free = self._flights(self._free)
        back = [flight for _, flight in zip(range(self._layout.frames), free, strict=False)]
        for flight in back:
            self._free.put(flight)

    def _read_loop(self, number: int) -> None:
        """Fill the slots of every readers-th input, beginning with the next flights meanwhile."""
        models = range(number, len(self._checkpoints), self._readers)
        queue, begun = self._to_read[number], deque[Filling]()
        io: IoMode = "cached" if self._rereads and self._io == "auto" else self._io
        modes = self._report.read_modes
        with OpenFiles(self._checkpoints, io, modes, self._readers) as files:
            for flight in self._flights(queue):
                begun.append(Filling(flight, models, files, self._stop))
                while begun and (queue.empty() or begun[0].is_done()):
                    self._hand_over(begun.popleft())

    def _hand_over(self, filling: Filling) -> None:
        filling.finish()
        with self._lock:
            self._report.bytes_read += filling.nbytes
        if filling.flight.part_done():
            self._to_merge.put(filling.flight)

    def _work_loop(self) -> None:
        """Merge whole windows, on a lane of this thread's own."""
        lane = make_lane(self._device)
        for flight in self._flights(self._to_merge):
            window, output = flight.window, flight.frame.output
            output[: len(window.header)] = window.header
            for piece in window.pieces:
                if window.measuring:
                    self._merger.measure(piece, flight.views, lane.on_cpu)
                else:
                    self._merger.merge(piece, flight.views, output, lane)
            flight.views = []
            if window.measuring:
                self._progress(window.bytes_read)
                self._free.put(flight)
                continue
            flight.wait_for(2)
            self._to_hash[window.row].put(flight)
            self._to_write.put(flight)

    def _hash_loop(self, row: int) -> None:
        """Digest the shards of one row."""
        for arrived in self._flights(self._to_hash[row]):
            for flight in self._finisher.digest(arrived):
                self._release(flight)

    def _write_loop(self) -> None:
        """Write windows where they belong."""
        try:
            for flight in self._flights(self._to_write):
                self._finisher.write(flight)
                self._progress(flight.window.length + flight.window.bytes_read)
                self._release(flight)
        finally:
            self._finisher.close()

    def _release(self, flight: Flight) -> None:
        if flight.part_done():
            self._free.put(flight)
