"""The server without a model, a decoder and a page: `python null_server.py --port 0 ...`, options as `serve` has them.

A prediction takes as many seconds as its `start` says, a step of an analysis a twentieth of its `stride`.
"""
import sys
import threading
from types import SimpleNamespace

import numpy as np

from vlmtemporal.clips import Answer
from vlmtemporal.decode import Prediction
from vlmtemporal.engine import Analysis, Progress, _Places
from vlmtemporal.frames import FrameSpec
from vlmtemporal.operations import Segment, get_taxonomy
from vlmtemporal.timeline import Timeline


def rest(ticket, seconds):
    "Wait so long, or until the ticket has ended."
    over = threading.Event()
    with ticket.on_cancel(over.set): over.wait(seconds)
    ticket.check()


class NullEngine(_Places):
    "Answers about nothing, in the places of the engine."
    def __init__(self, model='null', adapter=None, queue=16, batch=8, decoding=4):
        super().__init__(queue)
        self.loaded = SimpleNamespace(name='tiny', adapter=None)
        self.taxonomy, self.spec = get_taxonomy('logistics'), FrameSpec()
        self.ready, self.waiting, self.trained, self.prior = False, 0, None, None
        self.trained_on = 'the model was trained on nothing'
    def warm_up(self): self.ready = True
    def close(self):
        self.ready = False
        for ticket in list(self._tickets): ticket.cancel()
    def sample_upload(self, video, start=0., ticket=None, sampler=None):
        return SimpleNamespace(start=start, frames=np.zeros((8, 2, 2, 3), np.uint8))
    def answer(self, clip, decoder='constrained', ticket=None):
        with ticket.stage('model'): rest(ticket, clip.start)
        name = self.taxonomy.names[0]
        return Prediction('upload@0s', Answer(name, 0, 124, name, .9), 'constrained', {name: 1.})
    def follow(self, video, stride=1., context_seconds=None, trusted=True, ticket=None, limits=None):
        names = self.taxonomy.names
        for i in range(1, 11):
            rest(ticket, stride/20)
            segments = tuple(Segment(name, k*10, k*10 + 10) for k, name in zip(range(i), names*2))
            timeline = Timeline(self.taxonomy, segments, (.5,)*i, 10.*i, {names[0]: 1.})
            yield Progress(i, 10, 10.*i, 100., timeline, Analysis(timeline, timeline, 10, 1.) if i == 10 else None)


def main():
    import vlmtemporal.app
    import vlmtemporal.serve
    vlmtemporal.serve.Engine = NullEngine
    vlmtemporal.serve.note_uploads = lambda: None # without the page no need to import Gradio
    vlmtemporal.app.mount = lambda api, *args, **options: api
    from vlmtemporal.cli import main
    sys.argv[1:1] = ['serve']
    main()


if __name__ == '__main__': main()
