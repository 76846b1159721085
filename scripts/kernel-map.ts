// Writes docs/kernel-map.md from the `Mirrors:` lines of assembly/: which file and function here is which of the kernel.
// Usage: node scripts/run.mjs kernel-map [--check]

import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';

const path = 'docs/kernel-map.md';

interface Mirror {
  /** The function or class here; empty for a whole file. */
  ours: string;
  kernel: string;
}

/** The text of a comment block, without its marks, as one line for each paragraph. */
function unwrap(lines: string[]): string[] {
  const bare = lines.map((line) => line.replace(/^\s*(\/\*\*?|\*\/|\*|\/\/)\s?/, '').replace(/\s*\*\/\s*$/, ''));
  const paragraphs: string[] = [];
  let open = false;
  for (const line of bare) {
    const text = line.trim();
    const startsAnew = text === '' || /^[A-Z][a-z]+( [a-z]+)?: /.test(text);
    if (open && !startsAnew) paragraphs[paragraphs.length - 1] += ` ${text}`;
    else if (text !== '') paragraphs.push(text);
    open = text !== '';
  }
  return paragraphs;
}

/** The kernel's side of each `Mirrors:`, up to the end of the sentence. */
function mirrorsIn(paragraphs: string[]): string[] {
  return paragraphs
    .map((paragraph) => /(?:^|[.)] )Mirrors: (.*?)\.?(?:\.\s.*)?$/.exec(paragraph)?.[1])
    .filter((kernel) => kernel !== undefined);
}

/** The first sentence of a file. */
function subjectOf(source: string): string {
  const header = source.slice(0, source.search(/^(?!\/\/)/m)).split('\n');
  return /^.*?[.:](?=\s|$)/.exec(unwrap(header)[0] ?? '')?.[0].replace(/[.:]$/, '') ?? '';
}

function mirrorsOf(source: string): Mirror[] {
  const lines = source.split('\n');
  const mirrors: Mirror[] = [];
  const isComment = (line: string) => /^\s*(\/\/|\/\*|\*)/.test(line);
  let start = 0;
  while (start < lines.length) {
    if (!isComment(lines[start]!)) {
      start++;
      continue;
    }
    let end = start;
    while (end < lines.length && isComment(lines[end]!)) end++;
    const declaration = /\b(?:function|class|enum|const)\s+(\w+)|^\s*(?:@\w+\s+)*(?:static\s+)?(\w+)\s*\(/.exec(
      lines[end] ?? '',
    );
    const ours = start === 0 ? '' : (declaration?.[1] ?? declaration?.[2] ?? '');
    for (const kernel of mirrorsIn(unwrap(lines.slice(start, end)))) mirrors.push({ ours, kernel });
    start = end;
  }
  return mirrors;
}

function kernelMap(): string {
  const files = readdirSync('assembly', { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => name.replaceAll('\\', '/'))
    .sort();
  const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('<', '&lt;');
  const sections = files.flatMap((name) => {
    const mirrors = mirrorsOf(readFileSync(`assembly/${name}`, 'utf8'));
    if (mirrors.length === 0) return [];
    const rows = mirrors.map(
      ({ ours, kernel }) => `| ${ours === '' ? 'the whole file' : `\`${ours}\``} | ${cell(kernel)} |`,
    );
    return [`## [assembly/${name}](../assembly/${name})\n\n| here | in Linux |\n| --- | --- |\n${rows.join('\n')}\n`];
  });
  const own = files
    .map((name) => ({ name, source: readFileSync(`assembly/${name}`, 'utf8') }))
    .filter(({ source }) => mirrorsOf(source).length === 0)
    .map(({ name, source }) => `| [assembly/${name}](../assembly/${name}) | ${cell(subjectOf(source))} |`);
  return [
    '# Kernel map\n',
    'Which file and function of `assembly/` models which of Linux. Written by `npm run kernel-map` from the',
    '`Mirrors:` lines of the sources; change those, not this file.\n',
    ...sections,
    ...(own.length === 0
      ? []
      : [`## Without a counterpart\n\n| file | what it is |\n| --- | --- |\n${own.join('\n')}\n`]),
  ].join('\n');
}

const text = kernelMap();
if (process.argv.includes('--check')) {
  if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
    process.stderr.write(`${path} is stale: run npm run kernel-map\n`);
    process.exitCode = 1;
  }
} else {
  mkdirSync('docs', { recursive: true });
  writeFileSync(path, text);
  process.stderr.write(`wrote ${path}\n`);
}
