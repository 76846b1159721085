// `eptsim conform PATH…`: replays recordings of real KVM and prints what differs.

import type { Command } from 'commander';
import { conform } from './conform.ts';
import { HostInputs } from './host-inputs.ts';
import { minimise } from './minimise.ts';
import { InputError, listRecordings } from './reader.ts';
import { describeInputs, describeMismatch, describeOperation, describeTotals, explain } from './report.ts';
import type { Mismatch } from './run.ts';

interface ConformOptions {
  readonly json?: boolean;
  readonly stopAtFirst?: boolean;
  readonly explain?: boolean;
  readonly minimise?: boolean;
  readonly hostInputs: boolean;
}

const EXIT_MISMATCH = 1;
const EXIT_INPUT = 2;

/** Adds the `conform` command to the program. */
export function registerConform(program: Command): void {
  program
    .command('conform')
    .description('replay recordings of real KVM and compare every SPTE change')
    .argument('<path...>', 'recordings (.jsonl, .jsonl.gz), files of unit vectors, or folders of them')
    .option('--json', 'print one JSON object')
    .option('--stop-at-first', 'stop at the first mismatch')
    .option('--explain', 'print the state around each mismatch')
    .option('--minimise', 'print the fewest operations that still show each recording’s first mismatch')
    .option('--no-host-inputs', 'take nothing from the recordings but the operations')
    .action((paths: string[], options: ConformOptions) => {
      process.exitCode = runConform(paths, options);
    });
}

/** Runs the command. Returns its exit code: 0, 1 if something differs, 2 if an input is refused. */
export function runConform(paths: readonly string[], options: ConformOptions): number {
  const print = (line: string) => process.stdout.write(`${line}\n`);
  const note = (line: string) => process.stderr.write(`${line}\n`);
  const say = options.json ? note : print;
  const inputs = new HostInputs(options.hostInputs);
  // Only the first mismatch of a recording is worth a search: those after it may follow from it.
  const firsts = new Map<string, Mismatch>();
  const onMismatch = (mismatch: Mismatch) => {
    if (!options.json) print(describeMismatch(mismatch));
    if (options.explain) say(explain(mismatch));
    if (!firsts.has(mismatch.detail.file)) firsts.set(mismatch.detail.file, mismatch);
  };
  try {
    const result = conform(listRecordings(paths), inputs, { stopAtFirst: options.stopAtFirst, onMismatch });
    if (options.minimise) for (const mismatch of firsts.values()) printMinimised(mismatch, options.hostInputs, say);
    say(describeInputs(inputs));
    print(options.json ? JSON.stringify(result) : describeTotals(result));
    return result.mismatches === 0 ? 0 : EXIT_MISMATCH;
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    note(error.message);
    return EXIT_INPUT;
  }
}

function printMinimised(mismatch: Mismatch, allowInputs: boolean, say: (line: string) => void): void {
  const { detail, recording, operation } = mismatch;
  if (recording === undefined || operation === undefined) return;
  const operations = minimise(recording, operation.i, detail, allowInputs);
  say(`${detail.file}:${detail.i}: ${operations.length} of ${operation.i + 1} operations still differ:`);
  for (const kept of operations) say(`  ${describeOperation(kept)}`);
}
