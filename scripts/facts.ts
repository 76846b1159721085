// Facts about the tree that no other tool checks: links, dead files, import directions, what must not be tracked.
// Usage: node scripts/run.mjs facts
//
// It judges what is true or false of the files, never taste.

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';

const findings: string[] = [];
const git = spawnSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { encoding: 'utf8' });
const trackedOnly = spawnSync('git', ['ls-files', '-z'], { encoding: 'utf8' });
if (git.status !== 0 || trackedOnly.status !== 0) throw new Error(`git ls-files: ${git.stderr}`);
const files = git.stdout.split('\0').filter((file) => file !== '' && existsSync(file) && statSync(file).isFile());
const read = (file: string) => readFileSync(file, 'utf8');
const isText = (file: string) => !readFileSync(file).subarray(0, 8000).includes(0);

// --- Links in Markdown -------------------------------------------------------------------------------------------

/** The anchors of a Markdown file: its headings, spelled as a code host does. */
function anchorsOf(file: string): Set<string> {
  const anchors = new Set<string>();
  const prose = read(file).replaceAll(/^```[\s\S]*?^```/gm, '');
  for (const [, heading] of prose.matchAll(/^#{1,6}\s+(.+?)\s*#*$/gm)) {
    const plain = heading!.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1').replaceAll(/[`*]/g, '');
    const slug = plain
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N}\s_-]/gu, '')
      .replaceAll(/\s/g, '-');
    let anchor = slug;
    for (let again = 1; anchors.has(anchor); again++) anchor = `${slug}-${again}`;
    anchors.add(anchor);
  }
  return anchors;
}

const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
for (const file of files.filter((name) => name.endsWith('.md'))) {
  const whole = read(file);
  const prose = whole.replaceAll(/^```[\s\S]*?^```/gm, '').replaceAll(/`[^`\n]*`/g, '');
  const targets = [...prose.matchAll(/\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)/g)].map((match) => match[1]!);
  for (const target of [...targets, ...[...prose.matchAll(/^\[[^\]]+\]:\s*(\S+)/gm)].map((match) => match[1]!)]) {
    if (/^[a-z][a-z0-9+.-]*:/i.test(target)) continue;
    const [path, anchor] = target.split('#') as [string, string | undefined];
    const linked = path === '' ? file : normalize(join(dirname(file), decodeURIComponent(path)));
    if (!existsSync(linked)) findings.push(`${file}: broken link ${target}`);
    else if (anchor !== undefined && linked.endsWith('.md') && !anchorsOf(linked).has(anchor)) {
      findings.push(`${file}: ${linked} has no heading for #${anchor}`);
    }
  }
  for (const [, name] of whole.matchAll(/\bnpm run ([a-z][\w:-]*)/g)) {
    if (scripts[name!] === undefined) findings.push(`${file}: package.json has no script '${name}'`);
  }
}

// --- What must not be tracked ------------------------------------------------------------------------------------

for (const file of trackedOnly.stdout.split('\0').filter((name) => name !== '')) {
  if (/^(dist|build|coverage|node_modules)\/|\.(wasm|tgz|log|tsbuildinfo)$/.test(file)) {
    findings.push(`${file}: a built file is tracked`);
  }
}
for (const file of files.filter(isText)) {
  for (const [index, line] of read(file).split('\n').entries()) {
    const where = `${file}:${index + 1}`;
    const path = /(?<![\w.}*-])\/(?:work|tmp|home|root|Users)\/[\w.-]+/.exec(line);
    if (path) findings.push(`${where}: an absolute path of one machine: ${path[0]}`);
    const host = /\bregistry\.[a-z0-9-]+\.[a-z]{2,}|\bdeb\.debian\.org/.exec(line);
    if (host) findings.push(`${where}: a package registry's host: ${host[0]}`);
  }
}
if (/"resolved":/.test(read('package-lock.json'))) findings.push('package-lock.json: names where packages come from');
const { dependencies } = JSON.parse(read('package.json')) as { dependencies?: Record<string, string> };
if (Object.keys(dependencies ?? {}).length > 0) findings.push('package.json: `dependencies` is not empty');

// --- Imports: dead files and directions --------------------------------------------------------------------------

/** The repository files that `file` imports by relative path. */
function importsOf(file: string): string[] {
  const code = read(file).replaceAll(/^\s*(\/\/|\*|\/\*).*$/gm, '');
  const specifiers = [...code.matchAll(/(?:\bfrom|\bimport)\s*\(?\s*['"](\.[^'"]*)['"]/g)].map((match) => match[1]!);
  return specifiers.flatMap((specifier) => {
    const base = normalize(join(dirname(file), specifier));
    const candidates = [base, base.replace(/\.js$/, '.ts'), `${base}.ts`, `${base}/index.ts`];
    return candidates.filter((name) => existsSync(name) && statSync(name).isFile()).slice(0, 1);
  });
}

function reachableFrom(entries: string[]): Set<string> {
  const seen = new Set<string>();
  const queue = entries.filter((entry) => existsSync(entry));
  for (let file = queue.pop(); file !== undefined; file = queue.pop()) {
    if (seen.has(file)) continue;
    seen.add(file);
    queue.push(...importsOf(file));
  }
  return seen;
}

const alive = reachableFrom([
  'assembly/index.ts',
  'assembly/index.debug.ts',
  'src/index.ts',
  'src/cli/main.ts',
  'web/main.ts',
]);
for (const file of files) {
  if (/^(assembly|src|web)\/.*\.ts$/.test(file) && !file.endsWith('.d.ts') && !alive.has(file)) {
    findings.push(`${file}: no entry point imports it`);
  }
  if (!/^(src|web)\/.*\.ts$/.test(file)) continue;
  for (const imported of importsOf(file)) {
    const isOutside = /^(src\/cli|web)\//.test(file);
    if (isOutside && imported.startsWith('src/') && !imported.startsWith('src/cli/') && imported !== 'src/index.ts') {
      findings.push(`${file}: imports ${imported}; outside the API only src/index.ts may be imported`);
    }
    if (!isOutside && /^(src\/cli|web|test|scripts)\//.test(imported)) findings.push(`${file}: imports ${imported}`);
    if (imported.startsWith('assembly/')) findings.push(`${file}: imports ${imported}; only the built engine is used`);
  }
}

for (const finding of findings) process.stderr.write(`${finding}\n`);
process.stderr.write(findings.length === 0 ? 'facts: all hold\n' : `facts: ${findings.length} do not hold\n`);
process.exitCode = findings.length === 0 ? 0 : 1;
