// A budget cuts an operation in pieces; it must not show. Two VMs do the same commands, one at once, one in pieces of
// random size: the same results, counters (visited entries and flushes included), events and leafs.

import fc from 'fast-check';
import { test } from 'vitest';
import { eventLines } from '../support/events.ts';
import { type Command, newTarget, perform, type Sequence, sequence, type Target } from './commands.ts';
import {
  attempt,
  cleanUp,
  commandsOf,
  commandText,
  difference,
  engineLeafs,
  isErrno,
  makeEngine,
  type Outcome,
  prepare,
  RUNS,
  SEED,
  sequenceText,
  TIMEOUT_MS,
} from './world.ts';

const NUM_RUNS = Math.ceil(RUNS / 10);

/** Operations over a range; what is done to the host's memory pauses in its notifier calls. */
const IN_PIECES = new Set<Command['op']>([
  ...(['range', 'zapGfnRange', 'convert', 'setAttributes', 'punch', 'closeGmem', 'deleteSlot', 'moveSlot'] as const),
  ...(['toggleLog', 'host', 'clearDirtyLog', 'getDirtyLog', 'writeParameter', 'recoverNxHugePages'] as const),
]);

function attemptInPieces(target: Target, command: Command, budget: number): { outcome: Outcome; pauses: number } {
  const pieces = target.vm.steps({ budget }, () => perform(target, command));
  for (let pauses = 0; ; pauses++) {
    try {
      const piece = pieces.next();
      if (piece.done) return { outcome: { value: piece.value }, pauses };
    } catch (error) {
      if (isErrno(error)) return { outcome: { errno: error.code }, pauses };
      throw error;
    }
  }
}

/** A pause leaves the driver's own bookkeeping behind the call undone: takes it from the other target. */
function catchUp(target: Target, whole: Target): void {
  target.slots.splice(0, target.slots.length, ...whole.slots.map((slot) => ({ ...slot })));
  target.gmems.forEach((file, index) => {
    file.isOpen = whole.gmems[index].isOpen;
  });
}

test(
  `${NUM_RUNS} sequences in pieces end as they do at once`,
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
          if (IN_PIECES.has(command.op) && !(command.op === 'host' && command.call === 'remap')) {
            const done = attemptInPieces(cut, command, sizes[k % sizes.length]);
            actual = done.outcome;
            catchUp(cut, whole);
            pauses += done.pauses;
          } else actual = attempt(cut, command);
          const stats = (vm: Target['vm']): string[] => Object.entries(vm.stats()).map(([name, n]) => `${name}=${n}`);
          const problems = [
            difference('results (at once: the model)', [`${actual.errno}`], [`${expected.errno}`]),
            difference('counters', stats(cut.vm), stats(whole.vm)),
            difference('leafs', engineLeafs(cut.vm), engineLeafs(whole.vm)),
            difference('events', cut.vm.trace().flatMap(eventLines), whole.vm.trace().flatMap(eventLines)),
          ].filter((problem) => problem !== null);
          if (problems.length > 0) {
            throw new Error(`${problems.join('\n')}\nafter ${commandText(command)}\n${sequenceText(one)}`);
          }
        });
        cleanUp(whole);
        cleanUp(cut);
      }),
      { numRuns: NUM_RUNS, ...SEED },
    );
    if (pauses === 0) throw new Error('no operation was cut in pieces');
  },
  TIMEOUT_MS,
);
