// The documents name files and functions that exist.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const filesUnder = (folder: string) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).replaceAll('\\', '/'));
const sources = ['assembly', 'src', 'scripts', 'bench', 'test']
  .flatMap(filesUnder)
  .filter((file) => file.endsWith('.ts'));
const code = sources
  .filter((file) => /^(assembly|src|scripts|bench)\//.test(file))
  .map((file) => readFileSync(file, 'utf8'));
const words = new Set(code.flatMap((text) => text.match(/\w+/g) ?? []));
const documents = ['README.md', 'CONTRIBUTING.md', ...filesUnder('docs').filter((file) => file.endsWith('.md'))];
/** Kernel functions and system calls have no capitals inside. */
const isOurs = (name: string) => /^[a-z]+[A-Z]/.test(name) || /^[A-Z]\w*[a-z]/.test(name);

test.each(documents)('%s', (document) => {
  const text = readFileSync(document, 'utf8');
  const files = (text.match(/(?<![\w*./-])[\w./-]*\w\.ts\b/g) ?? []).map((name) => name.replace(/^(\.\.\/)+/, ''));
  const gone = files.filter((name) => !sources.some((file) => file === name || file.endsWith(`/${name}`)));
  expect(gone.filter((name) => !name.includes('NAME'))).toEqual([]);
  const names = [...text.matchAll(/`(?:\w+\.)*(\w+)(?:\(\))?`/g)].map((match) => match[1]).filter(isOurs);
  expect(names.filter((name) => !words.has(name))).toEqual([]);
});
