"""A compression from checkpoints to pareto.json: does each point that is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cramjax import console
from cramjax.compress import fronts, matrices, prune
from cramjax.compress.candidates import Candidate
from cramjax.compress.entries import make_entries
from cramjax.compress.plan import WHOLE, CompressionRequest
from cramjax.compress.points import Point, PointFolders, TrainedNetwork
from cramjax.console import Announce
from cramjax.files import replacing, write_json
from cramjax.finetuning.store import Store, digest


class CompressionRun:
    """Carries out a request. `run` does what is missing and returns the content of pareto.json."""

    def __init__(
        self, request: CompressionRequest, candidates: Sequence[Candidate], announce: Announce
    ):
        """Opens the folder of the results.

        Raises:
            UserError: if the folder holds results of another request.
        """
        self.request = request
        self.plan = request.plan
        self.candidates = candidates
        self.announce = announce
        self._folders = PointFolders(request.out, request.plan)

        # Later requests may add shares, bits and seeds; all else stays the same.
        plan = self.plan.describe("shares", "bits", "n_seeds")
        for candidate in candidates:
            setup = {"model": digest(candidate.model.params), "plan": plan, **candidate.about}
            # A Store refuses a folder with another setup.
            Store(request.out / candidate.name, setup)

        is_done = [self._folders.is_done(point) for point in self._points()]
        self._n_missing = is_done.count(False)
        self._n_finished = 0
        self._pace = console.Pace()

    def run(self) -> list[dict[str, Any]]:
        """Do what is missing; write pareto.json and pareto.png after every model and seed."""
        for seed in range(self.plan.n_seeds):
            for candidate in self.candidates:
                self._compress(candidate, seed)
                self._write_entries()
        return self._write_entries()

    def _points(self) -> list[Point]:
        """Returns all points; quantisation starts from the one with whole weights."""
        points = []
        for candidate in self.candidates:
            for seed in range(self.plan.n_seeds):
                for share in self.plan.shares:
                    for bits in {WHOLE, *self.plan.bits}:
                        points.append(Point(candidate, seed, share, bits))
        return points

    def _compress(self, candidate: Candidate, seed: int) -> None:
        """Do all points of a model and a seed: ascending shares, each from the one before."""
        # The pruned network, while it is in memory.
        network: TrainedNetwork | None = None
        for share in sorted(self.plan.shares):
            whole = Point(candidate, seed, share, WHOLE)
            if self._folders.is_done(whole):
                network = None
            else:
                network = self._pruned(whole, network or self._network_before(whole))
                self._keep(whole, network)

            for bits in self.plan.bits:
                point = dataclasses.replace(whole, bits=bits)
                if bits == WHOLE or self._folders.is_done(point):
                    continue
                network = network or self._folders.read(whole)
                self._keep(point, self._ready_to_quantize(point, network))

    def _network_before(self, point: Point) -> TrainedNetwork:
        """Returns the network that is pruned to a share: that of the share before, or the first."""
        *earlier, _ = self.plan.path(point.share)
        if earlier:
            return self._folders.read(dataclasses.replace(point, share=earlier[-1]))
        candidate = point.candidate
        return TrainedNetwork(candidate.model.config, candidate.subject.start(point.seed))

    def _pruned(self, point: Point, network: TrainedNetwork) -> TrainedNetwork:
        """Returns the network after pruning to the share of `point`, and after finetuning."""
        if not point.share:
            return network

        subject = point.candidate.subject
        config, params = network
        if self.plan.structured:
            # Shares count from the whole network, however much of it is gone already.
            original = point.candidate.model.config
            config, params = prune.shrink(
                config,
                params,
                subject.axes(config),
                n_heads=prune.n_left(original.n_heads, point.share),
                d_ff=prune.n_left(original.d_ff, point.share),
            )
        else:
            paths = matrices.find(subject.axes(config), embeddings=self.plan.prune_embeddings)
            params = prune.prune(params, paths, point.share, self.plan.scope)

        if self.plan.epochs:
            params = subject.recover(config, params, point.seed, self.plan.epochs, None)
        return TrainedNetwork(config, params)

    def _ready_to_quantize(self, point: Point, network: TrainedNetwork) -> TrainedNetwork:
        """Returns the network after quantisation-aware finetuning, if the plan asks for it."""
        if not self.plan.qat_epochs:
            return network
        quantizer = self.plan.quantizer(point.bits)
        params = point.candidate.subject.recover(
            network.config, network.params, point.seed, self.plan.qat_epochs, quantizer
        )
        return TrainedNetwork(network.config, params)

    def _keep(self, point: Point, network: TrainedNetwork) -> None:
        """Write a point and announce its result."""
        result = self._folders.write(point, network)
        self._n_finished += 1
        left_s = self._pace.left_s(self._n_finished, self._n_missing) or 0.0
        self.announce(
            f"{self._n_finished}/{self._n_missing}  {point.candidate.name} "
            f"prune {point.share:g}, {point.bits} bits: {result['metric']} {result['value']:.3f}, "
            f"{result['bytes'] / 1e6:.2f} MB  {console.time_left(left_s)}"
        )

    def _write_entries(self) -> list[dict[str, Any]]:
        """Write pareto.json and pareto.png, and return the entries."""
        entries = make_entries(self.request.out, self.plan, self.candidates, self._folders)
        write_json(self.request.out / "pareto.json", entries)
        with replacing(self.request.out / "pareto.png") as path:
            fronts.plot(entries, path)
        return entries


def describe(entry: dict[str, Any]) -> str:
    """Returns an entry of pareto.json as a line for people."""
    line = (
        f"{entry['model']}  prune {entry['prune']:g}  {entry['bits']:2} bits  "
        f"{entry['bytes'] / 1e6:8.2f} MB  {entry['metric']} {entry['value']:.3f}"
    )
    return f"{line}  on the front" if entry["pareto_bytes"] else line
