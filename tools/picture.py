"""The README's picture: a recording of somebody whom the small model does not know, its labels, and what it says.

    python tools/picture.py        # writes nbs/images/timeline.png, in a minute or two
"""
from contextlib import closing
from pathlib import Path

from vlmtemporal.basics import atomic_path
from vlmtemporal.engine import Engine
from vlmtemporal.openpack import sessions
from vlmtemporal.twin import mock_data
from vlmtemporal.viewing import Line, SessionView

PICTURE = Path(__file__).parent.parent/'nbs'/'images'/'timeline.png'


def draw():
    session = sessions(mock_data(), ('U0108',))[0]
    with closing(Engine('tiny', 'tiny')) as engine: found = engine.analyze(session.source)
    shown = SessionView(session, [Line('the model', found.timeline.segments)])
    with atomic_path(PICTURE) as path: path.write_bytes(shown.picture(thumbnails=10).png)
    print(f"{PICTURE}: {shown.agreement['the model']:.1%} of {shown.duration:.0f} s as labelled")


if __name__ == '__main__': draw()
