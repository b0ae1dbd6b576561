"""The API's pages, read from the modules' text: signature, docstring, and the comment beside each parameter.

No module is imported, so nothing that it needs has to be there."""
import ast, io, re, tokenize
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Source:
    "A module's text, parsed."
    name: str
    lines: list[str]
    tree: ast.Module
    comments: dict[int, str] # by line
    public: list[str]

    @cached_property
    def defined(self) -> dict[str, ast.stmt]:
        "What stands at its top, by name."
        found: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found[name] = node
                case ast.Assign(targets=targets):
                    found |= {n.id: node for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found[name] = node
        return found

    @cached_property
    def homes(self) -> dict[str, str]:
        "The full name of what is written here by a short one, where it is a name of the package."
        mine = {name: f'vlmtemporal.{self.name}.{name}' for name in self.defined}
        imports = [n for n in self.tree.body if isinstance(n, ast.ImportFrom) and n.level and n.module]
        return mine | {a.asname or a.name: f'vlmtemporal.{n.module}.{a.name}' for n in imports for a in n.names}

    def imported_from(self, name: str) -> tuple[str, str]:
        "Module and name that an imported public name has at home."
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.level:
                for a in node.names:
                    if (a.asname or a.name) == name: return node.module or a.name, a.name
        raise KeyError(f'vlmtemporal.{self.name}.{name} is neither defined nor imported')


def module_source(path: Path) -> Source:
    text = path.read_text(encoding='utf-8')
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    said = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    comments = {n: text.lstrip('# ') for n, text in said.items() if not text.startswith('# %%')} # a cell begins
    public = next(ast.literal_eval(n.value) for n in tree.body
                  if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__')
    return Source(path.stem, text.splitlines(), tree, comments, public)


def comment(source: Source, line: int, first: int) -> str:
    "What is said of a line: behind it, else in the lines of comment above it, but none before line `first`."
    if line in source.comments: return source.comments[line]
    above: list[str] = []
    while (line := line - 1) >= first and line in source.comments and source.lines[line - 1].lstrip().startswith('#'):
        above.insert(0, source.comments[line])
    return ' '.join(above)


def parameters(source: Source, node: Function) -> list[tuple[str, str]]:
    "Each parameter that a comment says something of; the comment of a line is its last parameter's."
    a = node.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    last = {arg.lineno: arg for arg in every}
    said = [(arg.arg, comment(source, line, node.lineno)) for line, arg in last.items() if line < node.body[0].lineno]
    if node.returns and node.returns.lineno < node.body[0].lineno and node.returns.lineno not in last:
        said.append(('return', comment(source, node.returns.lineno, node.lineno)))
    return [(name, text) for name, text in said if text and not text.startswith(('type:', 'noqa'))]


class _FullNames(ast.NodeTransformer):
    "The package's own types by their full names: two modules may have a `Timeline` each."
    def __init__(self, homes: dict[str, str]): self.homes = homes

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.homes.get(node.id, node.id))

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.Name(self.homes[node.value]) if node.value in self.homes else node # 'FrameSpec', inside itself


def annotation(source: Source, node: ast.expr) -> ast.expr:
    return _FullNames(source.homes).visit(deepcopy(node))


def annotated(source: Source, arg: ast.arg | None) -> ast.arg | None:
    return arg and ast.arg(arg.arg, arg.annotation and annotation(source, arg.annotation))


def signature(source: Source, node: Function, method: bool) -> str:
    "As Sphinx wants it, without self."
    a = node.args
    bound = method and [arg.arg for arg in (*a.posonlyargs, *a.args)][:1] in (['self'], ['cls'])
    places = {k: [annotated(source, arg) for arg in getattr(a, k)] for k in ('posonlyargs', 'args', 'kwonlyargs')}
    if bound: places['posonlyargs' if a.posonlyargs else 'args'].pop(0)
    others = {k: annotated(source, getattr(a, k)) for k in ('vararg', 'kwarg')}
    args = ast.arguments(**places, **others, kw_defaults=a.kw_defaults, defaults=a.defaults)
    returns = f' -> {ast.unparse(annotation(source, node.returns))}' if node.returns else ''
    return f'({ast.unparse(args)}){returns}'


def field_head(source: Source, node: ast.AnnAssign) -> str:
    "A field of a dataclass as an argument; how a field is made is left out."
    default = f' = {ast.unparse(node.value)}' if node.value else ''
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == 'field': default = ' = ...'
    return f'{ast.unparse(node.target)}: {ast.unparse(annotation(source, node.annotation))}{default}'


def decorators(node: ast.stmt) -> set[str]:
    return {ast.unparse(d).partition('(')[0].split('.')[-1] for d in getattr(node, 'decorator_list', [])}


def directive(kind: str, head: str, lines: list[str], module: str, options: Sequence[str] = (), depth: int = 0) -> str:
    "One entry of the API: what it is, how it is called, what is said of it."
    fence = '`'*(6 - depth)
    body, how = '\n'.join(lines).strip(), '\n'.join(f':{o}' for o in [f'module: vlmtemporal.{module}', *options])
    return f'{fence}{{py:{kind}}} {head}\n{how}\n\n{body}\n{fence}\n'


def fields(said: list[tuple[str, str]]) -> list[str]:
    "Parameters as a list."
    names = [f':param {name}: {text}' if name != 'return' else f':returns: {text}' for name, text in said]
    return ['', *names, '']


def docstring(node: ast.AST) -> str:
    "As Markdown: a colon at a line's beginning would be a field's."
    return ast.get_docstring(node) or '' # type: ignore[arg-type]


def function_entry(source: Source, node: Function, owner: str = '') -> str:
    marks = decorators(node)
    name = f'{owner}.{node.name}' if owner else node.name
    if marks & {'property', 'cached_property'}:
        options = [f'type: {ast.unparse(annotation(source, node.returns))}'] if node.returns else []
        return directive('property', name, [docstring(node)], source.name, options, 1)
    kind = 'method' if owner else 'function'
    options = [f'{m}:' for m in ('classmethod', 'staticmethod') if m in marks]
    lines = [docstring(node), *fields(parameters(source, node))]
    return directive(kind, name + signature(source, node, bool(owner)), lines, source.name, options, bool(owner))


def class_entry(source: Source, node: ast.ClassDef) -> str:
    "A class, how it is made, and its public methods."
    made = next((n for n in node.body if isinstance(n, Function) and n.name == '__init__'), None)
    attributes = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    head, said = node.name, []
    if made:
        head, said = node.name + signature(source, made, True).partition(' -> ')[0], parameters(source, made)
    elif 'dataclass' in decorators(node) or any(ast.unparse(b).endswith('NamedTuple') for b in node.bases):
        shown = [n for n in attributes if 'ClassVar' not in ast.unparse(n.annotation)]
        head += f"({', '.join(field_head(source, n) for n in shown)})"
        said = [(n.target.id, comment(source, n.end_lineno, node.lineno)) for n in shown] # type: ignore[union-attr]
    bases = [ast.unparse(b) for b in node.bases]
    text = f"{docstring(node)}\n\n{'Is a ' + ', '.join(f'`{b}`' for b in bases) + '.' if bases else ''}"
    lines = [text, *fields([s for s in said if s[1]])]
    for n in node.body:
        public = isinstance(n, Function) and (not n.name.startswith('_') or n.name == '__call__')
        if public and 'setter' not in decorators(n): lines.append(function_entry(source, n, node.name))
    return directive('class', head, lines, source.name)


def short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f'{text[:most - 4]} ...'


def value_of(node: ast.stmt, name: str) -> ast.expr | None:
    "What a name is set to; in `A, B = 1, 2` each has its own."
    value = getattr(node, 'value', None)
    match node, value:
        case ast.Assign(targets=[ast.Tuple(elts=names)]), ast.Tuple(elts=values) if len(names) == len(values):
            return next(v for n, v in zip(names, values) if getattr(n, 'id', '') == name)
    return value


def data_entry(source: Source, name: str, node: ast.stmt) -> str:
    "A constant: what it is, and what is said of it."
    value = value_of(node, name)
    text = re.sub(r'\s+', ' ', ast.unparse(value)) if value else ''
    said = comment(source, node.end_lineno or node.lineno, 1)
    if isinstance(value, ast.Lambda):
        head = f'{name}({ast.unparse(value.args)})'
        return directive('function', head, [said, '', f'`{short(ast.unparse(value.body))}`'], source.name)
    return directive('data', name, [said, '', f'`{name} = {short(text)}`'], source.name)


def home(name: str, module: str, sources: dict[str, Source]) -> tuple[str, str]:
    "The module and the name under which something is defined."
    while name not in sources[module].defined: module, name = sources[module].imported_from(name)
    return module, name


def entry(name: str, module: str, sources: dict[str, Source]) -> str:
    "One public name."
    source = sources[module]
    match source.defined.get(name):
        case None:
            there, as_name = home(name, module, sources)
            text = f'The same as {{py:obj}}`vlmtemporal.{there}.{as_name}`.'
            return directive('data', name, [text], module)
        case ast.ClassDef() as node: return class_entry(source, node)
        case ast.FunctionDef() | ast.AsyncFunctionDef() as node: return function_entry(source, node)
        case node: return data_entry(source, name, node)


def module_page(module: str, sources: dict[str, Source], notebook: str) -> str:
    "The page of one module."
    source = sources[module]
    said = ast.get_docstring(source.tree) or ''
    head = f'# {module}\n\n{said}\n\n`vlmtemporal.{module}` is explained on [its page](../nbs/{notebook}.ipynb).\n\n'
    entries = '\n'.join(entry(n, module, sources) for n in source.public)
    return f'{head}```{{py:module}} vlmtemporal.{module}\n```\n\n{entries}'


def sentence(name: str, module: str, sources: dict[str, Source]) -> str:
    "The first of what is said of a name."
    there, as_name = home(name, module, sources)
    node = sources[there].defined[as_name]
    if isinstance(node, ast.ClassDef | Function): return ' '.join(docstring(node).partition('\n\n')[0].split())
    return comment(sources[there], node.end_lineno or node.lineno, 1)


def overview(sources: dict[str, Source], chapters: dict[str, str]) -> str:
    "The page of all modules, with every public name and a sentence about it."
    trees = '\n'.join(sources)
    said = 'Every public name of `vlmtemporal`, by chapter and module. {ref}`genindex` has them from A to Z.'
    text = ['# API', '', said, '', f'```{{toctree}}\n:hidden:\n\n{trees}\n```', '']
    before = ''
    for module, chapter in chapters.items():
        if chapter != before: text += [f'## {chapter}', '']
        before = chapter
        text += [f'### [`{module}`]({module}.md)', '', ast.get_docstring(sources[module].tree) or '', '']
        for name in sources[module].public:
            said = sentence(name, module, sources)
            text.append(f'- {{py:obj}}`~vlmtemporal.{module}.{name}`' + (f': {said}' if said else ''))
        text.append('')
    return '\n'.join(text)
