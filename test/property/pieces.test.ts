// A budget cuts an operation in pieces; it must not show. Two VMs do the same commands, one at once, one in pieces of
// random size: the same results, counters (visited entries and flushes included), events and bytes.

import fc from 'fast-check';
import { test } from 'vitest';
import { eventLines } from '../support/events.ts';
import { type Command, newTarget, type Sequence, sequence, type Target } from './commands.ts';
import {
  attempt,
  commandsOf,
  commandText,
  difference,
  makeEngine,
  type Outcome,
  prepare,
  sequenceText,
} from './world.ts';

const RUNS = Math.ceil(Number(process.env.EPTSIM_PROPERTY_RUNS ?? 1000) / 10);
const SEED = process.env.EPTSIM_PROPERTY_SEED === undefined ? {} : { seed: Number(process.env.EPTSIM_PROPERTY_SEED) };

/** Operations over a range; what is done to the host's memory pauses in its notifier calls. */
const IN_PIECES = new Set<Command['op']>([
  ...(['range', 'zapGfnRange', 'convert', 'setAttributes', 'punch', 'closeGmem', 'deleteSlot', 'moveSlot'] as const),
  ...(['toggleLog', 'host', 'clearDirtyLog', 'getDirtyLog', 'writeParameter', 'recoverNxHugePages'] as const),
]);

function attemptInPieces(target: Target, command: Command, budget: number): { outcome: Outcome; pauses: number } {
  let outcome: Outcome = {};
  let pauses = 0;
  const pieces = target.vm.steps({ budget }, () => {
    outcome = attempt(target, command);
  });
  for (const _ of pieces) pauses++;
  return { outcome, pauses };
}

test(
  `${RUNS} sequences in pieces end as they do at once`,
  () => {
    let pauses = 0;
    const budgets = fc.array(fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 2000 })), {
      minLength: 4,
      maxLength: 8,
    });
    fc.assert(
      fc.property(sequence as fc.Arbitrary<Sequence>, budgets, (one, sizes) => {
        const whole = newTarget(makeEngine(one.config), one.config);
        const cut = newTarget(makeEngine(one.config), one.config);
        prepare(whole);
        prepare(cut);
        commandsOf(one).forEach((command, k) => {
          const expected = attempt(whole, command);
          let actual: Outcome;
          if (IN_PIECES.has(command.op)) {
            const done = attemptInPieces(cut, command, sizes[k % sizes.length]);
            actual = done.outcome;
            pauses += done.pauses;
          } else actual = attempt(cut, command);
          const stats = (vm: Target['vm']): string[] => Object.entries(vm.stats()).map(([name, n]) => `${name}=${n}`);
          const problems = [
            difference('results (whole is the model)', [`${actual.errno}`], [`${expected.errno}`]),
            difference('counters', stats(cut.vm), stats(whole.vm)),
            difference('events', cut.vm.trace().flatMap(eventLines), whole.vm.trace().flatMap(eventLines)),
          ].filter((problem) => problem !== null);
          if (problems.length > 0) {
            throw new Error(`${problems.join('\n')}\nafter ${commandText(command)}\n${sequenceText(one)}`);
          }
        });
      }),
      { numRuns: RUNS, ...SEED },
    );
    if (pauses === 0) throw new Error('no operation was cut in pieces');
  },
  10 * 60_000,
);
