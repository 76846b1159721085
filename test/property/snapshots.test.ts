// A snapshot is all there is: taken at a random point, also between the steps of a fault, restored into a fresh VM, and
// continued there, a sequence gives the same answers and events and ends in the same bytes.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { GuestMemfd, Vm } from '../../src/index.ts';
import { eventLines } from '../support/events.ts';
import { type Command, newTarget, type Sequence, sequence, type Target } from './commands.ts';
import {
  attempt,
  cleanUp,
  commandsOf,
  commandText,
  makeEngine,
  prepare,
  RUNS,
  SEED,
  sameBytes,
  sequenceText,
  TIMEOUT_MS,
} from './world.ts';

const NUM_RUNS = Math.ceil(RUNS / 10);

/** What the driver keeps beside the VM: ids, so that they mean the same in the VM that takes over. */
type Bookmark = Pick<Target, 'gmems' | 'faults' | 'started' | 'slots'>;
function bookmark({ gmems, faults, started, slots }: Target): Bookmark {
  return {
    gmems: gmems.map((file) => ({ ...file })),
    faults: faults.map((fault) => ({ ...fault })),
    started: started.map((range) => ({ ...range })),
    slots: slots.map((slot) => ({ ...slot })),
  };
}

/** A target on a fresh VM that has taken the state of a snapshot. */
function restored(one: Sequence, bytes: Uint8Array, kept: Bookmark): Target {
  const target = newTarget(makeEngine(one.config), one.config);
  const vm: Vm = target.vm;
  vm.restore(bytes);
  const handles = new Map(vm.guestMemfds.map((file: GuestMemfd) => [file.fd, file]));
  target.gmems.push(...kept.gmems.map((file) => ({ ...file, handle: handles.get(file.fd) ?? file.handle })));
  target.faults.push(...kept.faults);
  target.started.push(...kept.started);
  target.slots.push(...kept.slots);
  return target;
}

/** Answer and events of a command as text. */
function answer(target: Target, command: Command): string {
  const { value, errno } = attempt(target, command);
  const text = errno ?? JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? `${part}` : part));
  return [text, ...target.vm.trace().flatMap(eventLines)].join('\n');
}

test(
  `${NUM_RUNS} sequences go on from a snapshot as without one`,
  () => {
    fc.assert(
      fc.property(sequence as fc.Arbitrary<Sequence>, fc.nat(40), (one, cut) => {
        // One file from the start: the number of a later one would depend on what else is open in the process.
        const commands = commandsOf(one).filter(({ op }) => op !== 'createGmem' && op !== 'closeGmem');
        const first = newTarget(makeEngine(one.config), one.config);
        prepare(first);
        if (first.hasPrivateMem) attempt(first, { op: 'createGmem', npages: one.gmemPages });
        const at = cut % (commands.length + 1);
        for (const command of commands.slice(0, at)) answer(first, command);
        const bytes: Uint8Array = first.vm.snapshot();
        const kept = bookmark(first);
        expect(bytes.length).toBe(first.vm.memoryUsed);

        // A descriptor belongs to one VM at a time: the first goes on to its end before the second takes over.
        const rest = commands.slice(at);
        const expected = rest.map((command) => answer(first, command));
        const end: Uint8Array = first.vm.snapshot();
        const second = restored(one, bytes, kept);
        const differs = rest.findIndex((command, k) => answer(second, command) !== expected[k]);
        const same = differs < 0 && sameBytes(end, second.vm.snapshot());
        cleanUp(second);
        if (same) return;
        const where = differs < 0 ? 'ends in other bytes' : `differs after ${commandText(rest[differs])}`;
        throw new Error(`restored before command ${at}, it ${where}\n${sequenceText(one)}`);
      }),
      { numRuns: NUM_RUNS, ...SEED },
    );
  },
  TIMEOUT_MS,
);
