// Runs the benches and prints their table.
// Usage: npm run bench [-- [QUESTION…] [--quick] [--guest GIB] [--json FILE]], or npm run bench -- --compare OLD NEW
//
// Fails if contenders disagree, if the native peer is slower than it should be, or if a goal is missed in a full run.

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import calls from './calls.bench.ts';
import { compare } from './compare.ts';
import convert from './convert.bench.ts';
import doors from './doors.bench.ts';
import growth from './growth.bench.ts';
import { compileNative } from './peers/native.ts';
import ranges from './ranges.bench.ts';
import type { Bench, Row } from './rows.ts';
import scale from './scale.bench.ts';
import start from './start.bench.ts';
import { goalsOf, tableOf } from './table.ts';
import trace from './trace.bench.ts';

const BENCHES: Readonly<Record<string, Bench>> = { start, calls, ranges, doors, growth, scale, trace, convert };

function machine(): Record<string, string | number> {
  let commit = 'unknown';
  try {
    commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
  } catch {
    // Not in a clone.
  }
  return { cpu: cpus()[0]?.model ?? 'unknown', cpus: cpus().length, memory: totalmem(), node: process.version, commit };
}

/** The rows of one question, asked in a process of its own: what one leaves behind (garbage, code) is not the next one's. */
function rowsOfProcess(name: string, { quick, guest }: { quick: boolean; guest?: string }): Row[] {
  const folder = mkdtempSync(join(tmpdir(), 'eptsim-bench-'));
  const file = join(folder, 'rows.json');
  try {
    const options = [...(quick ? ['--quick'] : []), ...(guest === undefined ? [] : ['--guest', guest]), '--json', file];
    const { status } = spawnSync(process.execPath, [process.argv[1], name, ...options], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    if (status !== 0 && status !== 1) throw new Error(`bench ${name} ended with ${status}`);
    return JSON.parse(readFileSync(file, 'utf8')).rows;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Returns the exit code: 1 where a goal is missed. Throws where the bench itself cannot be believed. */
export async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      quick: { type: 'boolean' },
      guest: { type: 'string' },
      json: { type: 'string' },
      compare: { type: 'boolean' },
    },
  });
  const say = (line: string) => void process.stderr.write(`  ${line}\n`);
  if (values.compare) {
    if (positionals.length !== 2) throw new Error('usage: npm run bench -- --compare OLD NEW');
    process.stdout.write(`${compare(positionals[0], positionals[1])}\n`);
    return 0;
  }
  for (const name of positionals) {
    if (!(name in BENCHES)) throw new Error(`there is no bench '${name}': ${Object.keys(BENCHES).join(', ')}`);
  }
  const quick = values.quick ?? false;
  const guestBytes = values.guest === undefined ? undefined : Number(values.guest) * 2 ** 30;
  if (guestBytes !== undefined && !(guestBytes > 0)) throw new Error(`--guest is ${values.guest}: it must be GiB`);
  const names = Object.keys(BENCHES).filter((name) => positionals.length === 0 || positionals.includes(name));
  const rows: Row[] = [];
  if (names.length === 1) {
    process.stderr.write(`${names[0]}\n`);
    rows.push(...(await BENCHES[names[0]]({ quick, guestBytes, native: compileNative(), say })));
  } else {
    for (const name of names) rows.push(...rowsOfProcess(name, { quick, guest: values.guest }));
  }
  const found = machine();
  process.stdout.write(`${tableOf(rows)}\n\n${goalsOf(rows)}\n`);
  process.stdout.write(
    `${Object.entries(found)
      .map(([key, value]) => `${key} ${value}`)
      .join(', ')}\n`,
  );
  if (values.json !== undefined)
    writeFileSync(values.json, `${JSON.stringify({ machine: found, quick, rows }, undefined, 1)}\n`);
  const missed = rows.filter(({ met }) => met === false);
  if (missed.length > 0)
    process.stdout.write(`${missed.length} rows miss their goal${quick ? ' (a quick run judges none)' : ''}\n`);
  return missed.length > 0 && !quick ? 1 : 0;
}
