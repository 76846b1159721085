// Runs the benches and prints their table.
// Usage: npm run bench [-- [QUESTION…] [--quick] [--guest GIB] [--json FILE]], or npm run bench -- --compare OLD NEW
//
// Fails if contenders disagree, if the native peer is slower than it should be, or if a goal is missed in a full run.

import { execFileSync, spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir, totalmem } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { Argument, Command, CommanderError, InvalidArgumentError } from 'commander';
import calls from './calls.bench.ts';
import { compare } from './compare.ts';
import convert from './convert.bench.ts';
import doors from './doors.bench.ts';
import growth from './growth.bench.ts';
import { compileNative } from './peers/native.ts';
import ranges, { sizesOf } from './ranges.bench.ts';
import { type Bench, type Row, UsageError } from './rows.ts';
import scale from './scale.bench.ts';
import start from './start.bench.ts';
import { goalsOf, tableOf } from './table.ts';
import trace from './trace.bench.ts';
import { GIB } from './workloads.ts';

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

/**
 * The rows of one question, asked in a process of its own: what one leaves behind (garbage, code) is not the next one's.
 * `failed` says how it ended where that was before its rows were written.
 */
function rowsOfProcess(name: string, { quick, guest }: Options): { rows: Row[]; failed?: string } {
  const folder = mkdtempSync(join(tmpdir(), 'eptsim-bench-'));
  const file = join(folder, 'rows.json');
  try {
    const options = [...(quick ? ['--quick'] : []), ...(guest === undefined ? [] : ['--guest', guest]), '--json', file];
    const { status, signal } = spawnSync(process.execPath, [process.argv[1], name, ...options], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    // A process that dies may end with 1 as well: its rows are there, or it failed.
    const isDone = (status === 0 || status === 1) && existsSync(file);
    if (!isDone) return { rows: [], failed: `${name} ended with ${signal ?? status}` };
    return { rows: JSON.parse(readFileSync(file, 'utf8')).rows };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Options {
  quick?: boolean;
  guest?: string;
  json?: string;
  compare?: boolean;
}

/** What the command line asks for; undefined where it asked for help, which is printed. */
function parsed(): { questions: string[]; options: Options } | undefined {
  const names = Object.keys(BENCHES).join(', ');
  const command = new Command('npm run bench --')
    .description('Times the engine against its peers, prints the table and which goals were met.')
    .addArgument(new Argument('[question...]', `${names}; all if none is named. With --compare: two files of rows`))
    .option('--quick', 'small guests, under a minute; judges no goal')
    .option('--guest <gib>', 'of the question ranges, guests of this size only', (value) => {
      if (!(Number(value) > 0)) throw new InvalidArgumentError('It must be a number of GiB.');
      return value;
    })
    .option('--json <file>', 'write the rows, with machine and commit')
    .option('--compare', 'print what changed between two such files')
    .helpOption('-h, --help', 'print this help')
    .addHelpText(
      'after',
      '\nExit codes: 0 done, 1 a goal was missed, 2 the call was wrong or the run not to be believed.',
    )
    .exitOverride()
    .configureOutput({ writeErr: () => {} });
  try {
    command.parse();
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return undefined;
    throw new UsageError(error.message.replace(/^error: /, ''));
  }
  const options = command.opts<Options>();
  const questions = command.args;
  if (options.compare) {
    if (questions.length !== 2) throw new UsageError('--compare takes two files: npm run bench -- --compare OLD NEW');
  } else {
    const unknown = questions.find((name) => !(name in BENCHES));
    if (unknown !== undefined) throw new UsageError(`there is no question '${unknown}'; there are ${names}`);
    checkGuest(questions, options);
    checkJson(options);
  }
  return { questions, options };
}

/** Refuses a size that would leave nothing to time. */
function checkGuest(questions: readonly string[], { guest, quick }: Options): void {
  if (guest === undefined) return;
  if (questions.length > 0 && !questions.includes('ranges')) {
    throw new UsageError(`--guest is of the question ranges, not of ${questions.join(', ')}`);
  }
  const sizes = sizesOf(quick ?? false).map((bytes) => bytes / GIB);
  if (sizes.includes(Number(guest))) return;
  const run = quick ? 'a quick run' : 'a run';
  throw new UsageError(`--guest ${guest}: ${run} has guests of ${sizes.join(', ')} GiB`);
}

/** Refuses a file that cannot be written, before the work and not after it. */
function checkJson({ json }: Options): void {
  if (json === undefined) return;
  try {
    accessSync(dirname(resolve(json)), constants.W_OK);
  } catch (error) {
    throw new UsageError(`--json ${json} cannot be written: ${(error as Error).message}`);
  }
}

/** Returns the exit code: 1 where a goal is missed, 2 where a question failed. Throws where its only question failed. */
export async function main(): Promise<number> {
  const asked = parsed();
  if (asked === undefined) return 0;
  const { questions, options } = asked;
  const say = (line: string) => void process.stderr.write(`  ${line}\n`);
  if (options.compare) {
    process.stdout.write(`${compare(questions[0], questions[1])}\n`);
    return 0;
  }
  const quick = options.quick ?? false;
  const guestBytes = options.guest === undefined ? undefined : Number(options.guest) * GIB;
  const names = Object.keys(BENCHES).filter((name) => questions.length === 0 || questions.includes(name));
  const rows: Row[] = [];
  const failed: string[] = [];
  if (names.length === 1) {
    process.stderr.write(`${names[0]}\n`);
    rows.push(...(await BENCHES[names[0]]({ quick, guestBytes, native: compileNative(), say })));
  } else {
    // A question that fails takes no other's rows with it.
    for (const name of names) {
      const answer = rowsOfProcess(name, { quick, guest: name === 'ranges' ? options.guest : undefined });
      rows.push(...answer.rows);
      if (answer.failed !== undefined) failed.push(answer.failed);
    }
  }
  // A quick run's guests are not those that the goals are for.
  if (quick) for (const row of rows) row.met = null;
  const found = machine();
  process.stdout.write(`${tableOf(rows)}\n\n${goalsOf(rows)}\n`);
  process.stdout.write(
    `${Object.entries(found)
      .map(([key, value]) => `${key} ${value}`)
      .join(', ')}\n`,
  );
  if (options.json !== undefined) {
    const written = { machine: found, quick, ...(failed.length === 0 ? {} : { failed }), rows };
    writeFileSync(options.json, `${JSON.stringify(written, undefined, 1)}\n`);
  }
  const missed = rows.filter(({ met }) => met === false);
  if (missed.length > 0) process.stdout.write(`${missed.length} rows miss their goal\n`);
  if (quick) process.stdout.write('a quick run judges no goal\n');
  for (const line of failed) process.stderr.write(`bench: ${line}: its rows are missing\n`);
  if (failed.length > 0) return 2;
  return missed.length > 0 ? 1 : 0;
}
