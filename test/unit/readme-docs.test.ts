// What README.md shows is what the commands print.

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

const readme = readFileSync('README.md', 'utf8');
const shown = [...readme.matchAll(/^```text\n([\s\S]*?)\n```/gm)].map((match) => match[1]);

test('the table is the one of the measured step', () => {
  const command = ['dist/cli/main.js', 'run', 'convert-already-private'];
  const { stdout } = spawnSync(process.execPath, command, { encoding: 'utf8', env: { ...process.env, NO_COLOR: '1' } });
  const tables = stdout.split('\n\n').map((part) => part.replaceAll(/ +$/gm, ''));
  expect(tables).toContain(shown[0]);
});

test('the last line of conform is the one of the table in docs/fidelity.md', () => {
  const [, table] = /<!-- conformance -->\n([\s\S]*?)<!-- \/conformance -->/.exec(
    readFileSync('docs/fidelity.md', 'utf8'),
  ) as RegExpExecArray;
  expect(shown[1]).toMatch(/^files \d+ {2}operations \d+ {2}changes \d+ {2}mismatches 0$/);
  expect(table).toContain(shown[1]);
});
