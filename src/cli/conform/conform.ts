// Replays files of recordings and unit vectors on the simulator: what `eptsim conform` runs.

import type { Difference } from './compare.ts';
import { HostInputs } from './host-inputs.ts';
import { inferFailedHugePages } from './infer.ts';
import { type Recording, readFile, type VectorFile } from './reader.ts';
import { type EngineOptions, type FailedHugePages, Replay } from './replay.ts';
import { type ConformResult, emptyResult, type RunOptions, runRecording } from './run.ts';
import { VectorCheck } from './vectors.ts';

export interface ConformRunOptions extends RunOptions {
  readonly engine?: EngineOptions;
}

function runVectors(file: VectorFile, inputs: HostInputs, result: ConformResult, options: ConformRunOptions): boolean {
  const check = new VectorCheck(file.vectors, inputs, options.engine);
  for (const vector of file.vectors) {
    result.operations++;
    for (const [, , count] of vector.changed) result.changes += count;
    let differences: readonly Difference[];
    try {
      differences = check.check(vector);
    } catch (error) {
      const fault = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
      differences = [{ field: 'fault', expected: 'an answer', actual: fault }];
    }
    for (const difference of differences) {
      const { field, expected, actual } = difference;
      const detail = { file: file.file, i: vector.line - 1, field, expected, actual };
      result.mismatches++;
      result.details.push(detail);
      options.onMismatch?.({
        detail,
        difference,
        recording: undefined,
        operation: undefined,
        vm: undefined,
        slots: [],
      });
      if (options.stopAtFirst) return false;
    }
  }
  return true;
}

/** Replays a recording; one that differs is first tried with huge pages that the host may not have had. */
function runOne(recording: Recording, inputs: HostInputs, result: ConformResult, options: ConformRunOptions): boolean {
  const replayInto = (into: ConformResult, own: HostInputs, failures: FailedHugePages, how: RunOptions) => {
    const replay = new Replay(recording, own, options.engine, failures);
    try {
      return runRecording(recording, replay, into, how);
    } finally {
      replay.close();
    }
  };
  let failures: FailedHugePages = new Map();
  if (inputs.allowed) {
    const trial = emptyResult();
    const own = new HostInputs(true);
    replayInto(trial, own, failures, { stopAtFirst: true });
    if (trial.mismatches === 0) {
      inputs.add(own);
      result.operations += trial.operations;
      result.changes += trial.changes;
      return true;
    }
    failures = inferFailedHugePages(recording, options.engine ?? {});
  }
  return replayInto(result, inputs, failures, options);
}

/**
 * Replays the files in order.
 * @throws {InputError} if one of them is no recording and no file of vectors
 */
export function conform(files: readonly string[], inputs: HostInputs, options: ConformRunOptions = {}): ConformResult {
  const result = emptyResult();
  for (const file of files) {
    const input = readFile(file);
    result.files++;
    const own = new HostInputs(inputs.allowed);
    let goesOn: boolean;
    if ('vectors' in input) {
      goesOn = runVectors(input, own, result, options);
    } else {
      goesOn = runOne(input, own, result, options);
    }
    inputs.add(own);
    if (!goesOn) break;
  }
  return result;
}
