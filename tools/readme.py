"Print README.md: `nbs/index.ipynb` as Markdown, seen from the root of the repository."
import re, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent


def markdown(cell) -> str:
    "One cell: Markdown as it is, code in a fence, then the text that it showed."
    if cell.cell_type == 'markdown': return cell.source
    shown = [''.join(o.get('text') or o.get('data', {}).get('text/markdown') or '') for o in cell.outputs]
    return '\n\n'.join([f'```python\n{cell.source}\n```', *(s.strip() for s in shown if s.strip())])


def readme() -> str:
    cells = nbformat.read(ROOT/'nbs'/'index.ipynb', 4).cells
    text = '\n\n'.join(markdown(c) for c in cells if not c.source.startswith('#| hide'))
    head = '<!-- made from nbs/index.ipynb by `make readme`; edit the notebook -->\n\n'
    return head + re.sub(r'\]\(\.\./', '](', text) + '\n'


if __name__ == '__main__': sys.stdout.write(readme())
