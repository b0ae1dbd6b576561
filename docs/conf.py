"Sphinx's settings for the pages that `stage.py` writes; `make docs` calls it."
import sys
from hashlib import sha256
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))
from stage import settings

cfg = settings()
project, author, release, copyright = cfg['title'], cfg['author'], cfg['version'], cfg['copyright']
extensions = ['myst_nb']
root_doc = 'index'
templates_path = []
html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path = [str(Path(__file__).parent/'static')]
html_css_files = ['site.css']
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_domain_indices = True
python_maximum_signature_line_length = 80
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = 'hide'
nb_execution_mode = 'off' # pages show what is stored in them
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_render_markdown_format = 'myst' # what cells show has tables
myst_enable_extensions = ['fieldlist']
myst_heading_anchors = 4
myst_fence_as_directive = ['mermaid']
myst_links_external_new_tab = False


class Mermaid(SphinxDirective):
    "A Mermaid drawing, made when the site is built: the page needs no script for it."
    has_content = True

    def run(self) -> list[nodes.Node]:
        import mermaidx
        source = '\n'.join(self.content)
        name = f'drawings/{sha256(source.encode()).hexdigest()[:12]}.svg'
        path = Path(self.env.srcdir)/name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(mermaidx.render(source).svg(), encoding='utf-8')
        words = '; '.join(line.strip() for line in source.splitlines()[1:] if '-->' in line).replace('-->', 'to')
        picture = nodes.image(uri=f'/{name}', alt=f'Drawing: {words}')
        self.set_source_info(picture)
        large = '../'*self.env.docname.count('/') + f'_images/{path.name}'
        link = nodes.reference('', '', picture, refuri=large, reftitle='Open it at its full size')
        return [nodes.container('', nodes.paragraph('', '', link), classes=['drawn'])]


def setup(app):
    app.add_directive('mermaid', Mermaid)
