// Random lives of files that are converted in place, on the engine and on the plain model: after each command they must agree
// in every attribute, every resident page, every leaf, what was zapped and lost, and every count.
//
// EPTSIM_PROPERTY_RUNS sets how many sequences one run does, EPTSIM_PROPERTY_SEED where it starts.

import fc from 'fast-check';
import { test } from 'vitest';
import { createVmSync, type GuestMemfd, KvmError, type StopPoint, type Vm } from '../../src/index.ts';
import { type PlainExit, PlainInPlace, type PlainSlot } from '../model/in-place.ts';
import type { AnyEvent } from '../support/events.ts';
import { checkInvariants } from '../support/invariants.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';
import { RUNS as ALL_RUNS, SEED, TIMEOUT_MS } from './world.ts';

/** A sequence looks at every page after each command: fewer of them take as long. */
const RUNS = Math.ceil(ALL_RUNS / 5);

/** Pages of a file: within a leaf table of the engine's trees, over one's end, over two. */
const SIZES = [1100, 1024, 513, 512, 65, 1];
/** Each slot has gfns of its own, but where it is put too far up; it begins aligned to 2M, or not. */
const SLOTS = 3;
const STRIDE_GFNS = 1536;
const BASES = [0, 3, 512, 515, 1024];
/** From where a slot may begin to where it ends, and where the last ends. */
const SLOT_GFNS = 1024 + 1100;
const WINDOW_GFNS = (SLOTS - 1) * STRIDE_GFNS + SLOT_GFNS;
const SHARED_BIT = 2 ** 47;
const NO_PAGE = 2n ** 64n - 4096n;
const POINTS: StopPoint[] = ['attributes-zapped', 'attributes-stored', 'gmem-zapped'];

const base = fc.nat(BASES.length - 1);
const config = fc.record({
  type: fc.constantFrom('sw-protected' as const, 'snp' as const, 'tdx' as const, 'tdx' as const),
  filter: fc.constantFrom('by-target' as const, 'by-content' as const),
  /** Without a trace the engine takes shorter ways. */
  isTraced: fc.boolean(),
  /** Whether the VMM has memory at the slots' userspace addresses, which no fault is to take. */
  hasHostMemory: fc.boolean(),
  flags: fc.constantFrom(0, 1, 2, 3, 3),
  size: fc.constantFrom(0, 0, 0, 1, 2, 4),
  base,
  pgoff: fc.constantFrom(0, 0, 1, 64, 511),
  slotPages: fc.constantFrom(1100, 1100, 600, 512, 70),
});

/** true once in `often`. */
const seldom = (often: number) => fc.nat(often - 1).map((number) => number === 1);
const at = fc.oneof(fc.nat(1099), fc.constantFrom(0, 1, 63, 64, 511, 512, 513, 1023, 1024, 1098));
const count = fc.oneof(
  fc.integer({ min: 1, max: 8 }),
  fc.constantFrom(1, 64, 511, 512, 513, 1024, 1100),
  fc.integer({ min: 1, max: 900 }),
);
/** A file by its number among those that are open; `isAny`: among all. */
const file = fc.record({ number: fc.nat(2), isAny: seldom(12) });
/** A slot by its number among those that there are; `isAny`: any id. */
const slot = fc.record({ number: fc.nat(SLOTS - 1), isAny: seldom(12) });
/** Bytes beside a page's start. */
const slack = fc.oneof(
  { weight: 15, arbitrary: fc.constant(0) },
  { weight: 1, arbitrary: fc.constantFrom(1, 100, 4095) },
);
/** A range of a file, mostly inside it. */
const region = fc.record({ file, at, count, isClipped: seldom(12).map((isNot) => !isNot), offset: slack, size: slack });
/** A gfn: of a slot, or anywhere. */
const gfn = fc.record({ slot, at, isAnywhere: seldom(15) });
/** How the guest says that it means private memory: as the attribute is, or not. */
const means = fc.constantFrom(...(['attribute', 'attribute', 'attribute', undefined, true, false] as const));
/** How an operation is run: at once, or in pieces, with an access of the guest at each point where it may stop. */
const pieces = fc.option(fc.record({ budget: fc.constantFrom(0, 1, 7, 100), gfn, means }), { freq: 2 });

const convert = fc.record({
  op: fc.constant('convert' as const),
  region,
  /** From the range's start to the file's end. */
  isLong: seldom(4),
  toPrivate: fc.boolean(),
  /** What else is wrong with the call. */
  wrong: fc.oneof(
    { weight: 15, arbitrary: fc.constant('') },
    { weight: 1, arbitrary: fc.constantFrom('flags', 'attributes', 'size 0', 'wraps') },
  ),
  pieces,
});
const punch = fc.record({ op: fc.constant('punch' as const), region, pieces });
const notify = fc.record({ op: fc.constant('notify' as const), slot, at, count });
const remove = fc.record({ op: fc.constant('delete' as const), slot });
const close = fc.record({ op: fc.constant('close' as const), file });
const kind = fc.constantFrom('read' as const, 'write' as const, 'write' as const, 'exec' as const);
const how = fc.constantFrom('age' as const, 'age and flush' as const, 'test' as const, 'range' as const);
const command = fc.oneof(
  { weight: 36, arbitrary: convert },
  { weight: 26, arbitrary: fc.record({ op: fc.constant('access' as const), gfn, count, kind, means }) },
  { weight: 24, arbitrary: fc.record({ op: fc.constant('take' as const), gfn, count, isAll: seldom(6) }) },
  { weight: 5, arbitrary: fc.record({ op: fc.constant('preFault' as const), gfn, count }) },
  { weight: 8, arbitrary: punch },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('allocate' as const), region }) },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('hostAccess' as const), region }) },
  {
    weight: 6,
    arbitrary: fc.record({ op: fc.constant('pin' as const), file, at, isPinned: seldom(3).map((no) => !no) }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('memoryError' as const), file, at }) },
  {
    weight: 3,
    arbitrary: fc.record({
      op: fc.constant('create' as const),
      size: fc.nat(SIZES.length - 1),
      flags: fc.constantFrom(0, 1, 2, 3, 3, 4),
      slack,
    }),
  },
  {
    weight: 10,
    arbitrary: fc.record({
      op: fc.constant('bind' as const),
      file,
      base,
      /** An id that is taken, gfns that are taken. */
      isTaken: seldom(12),
      isShifted: seldom(8),
      /** From a page that no slot shows, where there is one, up to the next that one does. */
      isClear: seldom(6).map((isNot) => !isNot),
      at,
      count,
    }),
  },
  { weight: 5, arbitrary: remove },
  { weight: 1, arbitrary: close },
  { weight: 5, arbitrary: notify },
  { weight: 6, arbitrary: fc.record({ op: fc.constant('age' as const), slot, at, count, how, filter: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('unmap' as const), slot, at, count, filter: fc.nat(3) }) },
  {
    weight: 10,
    arbitrary: fc.record({
      op: fc.constant('race' as const),
      gfn,
      means,
      inner: fc.oneof(
        { weight: 6, arbitrary: convert },
        { weight: 3, arbitrary: punch },
        { weight: 3, arbitrary: notify },
        { weight: 1, arbitrary: remove },
        { weight: 1, arbitrary: close },
      ),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('restore' as const) }) },
);
const sequence = fc.record({ config, commands: fc.array(command, { minLength: 1, maxLength: 50, size: 'max' }) });
type Config = typeof config extends fc.Arbitrary<infer T> ? T : never;
type Command = typeof command extends fc.Arbitrary<infer T> ? T : never;
type Region = typeof region extends fc.Arbitrary<infer T> ? T : never;
type Pieces = typeof pieces extends fc.Arbitrary<infer T> ? T : never;
type Gfn = typeof gfn extends fc.Arbitrary<infer T> ? T : never;
type Means = typeof means extends fc.Arbitrary<infer T> ? T : never;
type Chosen = typeof file extends fc.Arbitrary<infer T> ? T : never;
type Answers = [engine: unknown, model: unknown];

/** What `call` answers, or the errno with which it is refused. */
function answerOf(call: () => unknown): string {
  try {
    return String(call() ?? 'ok');
  } catch (error) {
    if (!(error instanceof KvmError)) throw error;
    return error.errorOffset === undefined ? error.code : `${error.code} at ${error.errorOffset / 4096n}`;
  }
}
const exitText = ({ reason, gfn: where, flags, errno }: PlainExit) => [reason, where, flags, errno].join();

class World {
  readonly vm: Vm;
  readonly model: PlainInPlace;
  /** The engine's files, in the order of the model's. */
  readonly files: GuestMemfd[] = [];
  slotsBefore: PlainSlot[] = [];
  readonly config: Config;
  /** Whether leaves may be of 2M: the model has none, and says nothing of what depends on their size. */
  readonly isHuge: boolean;

  constructor(chosen: Config, isHuge: boolean) {
    this.config = chosen;
    this.isHuge = isHuge;
    const { type, filter, isTraced, hasHostMemory } = chosen;
    this.vm = createVmSync({
      type,
      kernel: 'linux-6.16',
      filterForm: 'gmem-in-place',
      gmemInvalidateFilter: filter,
      memory: 2 ** 27,
      traceRecords: isTraced ? 1 << 15 : 0,
      // A TD's guest takes the exception itself, and lives.
      septVeDisable: false,
      td: type === 'tdx' ? { hugePages: isHuge } : undefined,
      mmioCaching: false,
      debug: isDebugBuild,
    });
    this.model = new PlainInPlace(type, filter === 'by-target');
    for (let id = 0; id < SLOTS && hasHostMemory; id++) {
      const memory = { hva: hvaOf(id, id * STRIDE_GFNS), length: SLOT_GFNS * PAGE };
      this.vm.host.mmap({ ...memory, kind: 'anon4k' });
      this.vm.host.access({ ...memory, write: true });
    }
    this.create(BigInt(SIZES[chosen.size] * PAGE), chosen.flags);
    const pgoff = Math.min(chosen.pgoff, SIZES[chosen.size] - 1);
    this.bind(0, BASES[chosen.base], 0, pgoff, Math.min(chosen.slotPages, SIZES[chosen.size] - pgoff));
  }

  create(size: bigint, flags: number): Answers {
    const engine = answerOf(() => {
      this.files.push(this.vm.createGuestMemfd({ size, flags, folioSize: this.isHuge ? '2M' : '4K' }));
    });
    return [engine, this.model.create(size, flags)];
  }

  bind(id: number, start: number, index: number, pgoff: number, npages: number): Answers {
    const engine = answerOf(() =>
      this.vm.setUserMemoryRegion2({
        slot: id,
        flags: 4,
        guestPhysAddr: start * PAGE,
        memorySize: npages * PAGE,
        userspaceAddr: hvaOf(id, start),
        guestMemfd: this.files[index].fd,
        guestMemfdOffset: pgoff * PAGE,
      }),
    );
    return [engine, this.model.bind(id, start, npages, this.model.files[index], pgoff)];
  }

  /** Runs `call` on the engine, whole or in pieces; `touch` is called at each point where it stops. */
  run(how: Pieces, call: () => unknown, touch: (point: string) => void): string {
    if (!how) return answerOf(call);
    const { vm } = this;
    const budget = how.budget === 0 ? undefined : how.budget;
    return answerOf(() => {
      const steps = vm.steps({ budget, stopAt: POINTS }, call);
      for (let step = steps.next(); ; step = steps.next()) {
        if (step.done) return step.value;
        if (step.value.at !== 'budget') touch(step.value.at);
      }
    });
  }

  /** Does an operation that may stop on both, with the same accesses at the same points. */
  both(how: Pieces, engine: () => unknown, model: (touch: (point: string) => void) => string): Answers {
    const seen: [string[], string[]] = [[], []];
    const where = how ? this.gfnOf(how.gfn) : 0;
    const priv = how ? this.privateOf(where, how.means) : undefined;
    const done = this.run(how, engine, (point) => seen[0].push(`${point} ${this.access(where, 1, 'write', priv)}`));
    const plain = model((point) => {
      if (how) seen[1].push(`${point} ${exitText(this.model.access(where, 1, true, priv))}`);
    });
    return [[done, ...seen[0]].join('; '), [plain, ...seen[1]].join('; ')];
  }

  privateOf(where: number, asked: Means): boolean | undefined {
    return asked === 'attribute' ? this.model.isPrivate(where) : asked;
  }
  /** Of a TD the gpa says whether an access is private. */
  gpaOf(where: number, priv: boolean | undefined): number {
    return where * PAGE + (this.config.type === 'tdx' && priv === false ? SHARED_BIT : 0);
  }
  access(where: number, pages: number, what: 'read' | 'write' | 'exec', priv: boolean | undefined): string {
    const exit = this.vm.vcpus[0].access({ gpa: this.gpaOf(where, priv), kind: what, count: pages, private: priv });
    const end = Number(exit.gpa % BigInt(SHARED_BIT)) / PAGE;
    return exitText({ reason: exit.reason, gfn: end, flags: exit.flags, errno: exit.errno });
  }

  /** The file that a command means, by its place in `files`. */
  fileOf({ number, isAny }: Chosen): number {
    const open = this.model.files.flatMap(({ isOpen }, index) => (isOpen ? [index] : []));
    return isAny || open.length === 0 ? number % this.files.length : open[number % open.length];
  }
  /** The id of the slot that a command means. */
  slotOf({ number, isAny }: Chosen): number {
    const ids = [...this.model.slots.keys()];
    return isAny || ids.length === 0 ? number : ids[number % ids.length];
  }
  /** The range of a file that a command means. */
  regionOf({ file: chosen, at: first, count: pages, isClipped, ...slacks }: Region): {
    index: number;
    offset: bigint;
    size: bigint;
  } {
    const index = this.fileOf(chosen);
    const npages = this.model.files[index].pages.length;
    const start = isClipped ? first % npages : first;
    const length = isClipped ? Math.min(pages, npages - start) : pages;
    return { index, offset: BigInt(start * PAGE + slacks.offset), size: BigInt(length * PAGE - slacks.size) };
  }
  gfnOf({ slot: chosen, at: offset, isAnywhere }: Gfn): number {
    const found = this.model.slots.get(this.slotOf(chosen));
    return found && !isAnywhere ? found.base + (offset % found.npages) : offset;
  }
  /** The gfns of a slot that a command means; all within it. */
  rangeOf(
    id: number,
    first: number,
    pages: number,
  ): { start: number; end: number; hva: number; length: number } | null {
    const found = this.model.slots.get(id);
    if (!found) return null;
    const start = found.base + (first % found.npages);
    const end = Math.min(start + pages, found.base + found.npages);
    return { start, end, hva: hvaOf(id, found.base) + (start - found.base) * PAGE, length: (end - start) * PAGE };
  }

  /** Does `one` on both; each says what came of it. */
  perform(one: Command): Answers {
    const { vm, model, files } = this;
    const [vcpu] = vm.vcpus;
    switch (one.op) {
      case 'create': {
        if (files.length === 3) return [0, 0];
        return this.create(BigInt(SIZES[one.size] * PAGE - one.slack), one.flags);
      }
      case 'bind': {
        const free = Array.from({ length: SLOTS }, (_, id) => id).filter((id) => !model.slots.has(id));
        const id = one.isTaken || free.length === 0 ? this.slotOf({ number: one.at % SLOTS, isAny: false }) : free[0];
        const start = id * STRIDE_GFNS + BASES[one.base] - (one.isShifted && id > 0 ? STRIDE_GFNS : 0);
        const index = this.fileOf(one.file);
        if (!model.files[index].isOpen) return [0, 0];
        const { pages } = model.files[index];
        let pgoff = one.at % pages.length;
        // One page too many, at times.
        let npages = Math.min(one.count, pages.length - pgoff + 1);
        if (one.isClear) {
          const shown = pages.map((_, page) =>
            [...model.slots.values()].some(
              ({ file: bound, pgoff: first, npages: run }) =>
                bound === model.files[index] && page >= first && page < first + run,
            ),
          );
          const clear = shown.indexOf(false, shown[pgoff] ? 0 : pgoff);
          if (clear >= 0) pgoff = clear;
          const next = shown.indexOf(true, pgoff);
          npages = Math.max(1, Math.min(one.count, (next < 0 ? pages.length : next) - pgoff));
        }
        return this.bind(id, start, index, pgoff, npages);
      }
      case 'delete': {
        const id = this.slotOf(one.slot);
        const nothing = { guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 };
        return [answerOf(() => vm.setUserMemoryRegion({ slot: id, ...nothing })), model.delete(id)];
      }
      case 'close': {
        const index = this.fileOf(one.file);
        // The only one that is open mostly stays.
        const open = model.files.filter(({ isOpen }) => isOpen);
        if (open.length === 1 && one.file.number > 0) return [0, 0];
        return [answerOf(() => files[index].close()), model.close(model.files[index])];
      }
      case 'convert': {
        let { index, offset, size } = this.regionOf(one.isLong ? { ...one.region, count: SIZES[0] } : one.region);
        if (one.wrong === 'size 0') size = 0n;
        if (one.wrong === 'wraps') offset = NO_PAGE;
        const attributes = one.wrong === 'attributes' ? 9 : one.toPrivate ? 8 : 0;
        const flags = one.wrong === 'flags' ? 1 : 0;
        return this.both(
          one.pieces,
          () => files[index].setMemoryAttributes({ offset, size, attributes, flags }),
          (touch) => model.convert(model.files[index], offset, size, attributes, flags, touch),
        );
      }
      case 'punch': {
        const { index, offset, size } = this.regionOf(one.region);
        return this.both(
          one.pieces,
          () => files[index].punchHole(offset, size),
          (touch) => model.punch(model.files[index], offset, size, touch),
        );
      }
      case 'allocate': {
        const { index, offset, size } = this.regionOf(one.region);
        return [answerOf(() => files[index].allocate(offset, size)), model.allocate(model.files[index], offset, size)];
      }
      case 'hostAccess': {
        const { index, offset, size: length } = this.regionOf(one.region);
        return [
          answerOf(() => files[index].hostAccess({ offset, length })),
          model.hostAccess(model.files[index], offset, length),
        ];
      }
      case 'pin': {
        // A reference is of the whole folio.
        if (this.isHuge) return [0, 0];
        const index = this.fileOf(one.file);
        // Mostly of a page that is there.
        const { pages } = model.files[index];
        const found = one.at % 8 === 0 ? -1 : pages.findIndex(({ present }, page) => present && page >= one.at % 600);
        const page = found < 0 ? one.at : found;
        const engine = answerOf(() =>
          one.isPinned ? files[index].elevateRefcount(page) : files[index].dropRefcount(page),
        );
        return [engine, model.pin(model.files[index], page, one.isPinned)];
      }
      case 'memoryError': {
        const index = this.fileOf(one.file);
        return [answerOf(() => files[index].memoryError(one.at)), model.memoryError(model.files[index], one.at)];
      }
      case 'access': {
        const where = this.gfnOf(one.gfn);
        const priv = this.privateOf(where, one.means);
        const engine = this.access(where, one.count, one.kind, priv);
        return [engine, exitText(model.access(where, one.count, one.kind === 'write', priv))];
      }
      case 'take': {
        // The guest takes private pages into use: a TD accepts them, any other writes. Mostly of what is private alone.
        let where = this.gfnOf(one.gfn);
        const first = where;
        for (let tries = 0; tries < WINDOW_GFNS && !one.isAll && !model.isPrivate(where); tries++) {
          where = (first + tries) % WINDOW_GFNS;
        }
        let pages = one.isAll ? one.count : 1;
        while (pages < one.count && model.isPrivate(where + pages)) pages++;
        if (this.config.type !== 'tdx') {
          return [this.access(where, pages, 'write', true), exitText(model.access(where, pages, true, true))];
        }
        const level = this.isHuge ? 2 : 1;
        const engine = answerOf(() => `${vcpu.accept({ gpa: where * PAGE, size: pages * PAGE, level })} accepted`);
        return [engine, model.accept(where, pages)];
      }
      case 'preFault': {
        const where = this.gfnOf(one.gfn);
        const engine = answerOf(() => {
          const { size } = vcpu.preFaultMemory({ gpa: where * PAGE, size: one.count * PAGE });
          return `${size / 4096n} left`;
        });
        return [engine, model.preFault(where, one.count)];
      }
      case 'notify': {
        const id = this.slotOf(one.slot);
        const range = this.rangeOf(id, one.at, one.count);
        if (!range) return [0, 0];
        const { start, end, ...bytes } = range;
        const engine = answerOf(() => {
          vm.host.invalidateRangeStart(bytes);
          vm.host.invalidateRangeEnd(bytes);
        });
        return [engine, model.notify(id, start, end)];
      }
      case 'age': {
        const id = this.slotOf(one.slot);
        const range = this.rangeOf(id, one.at, one.count);
        if (!range) return [0, 0];
        const { start, end, hva, length } = range;
        if (one.how === 'test') return [vm.host.testAge({ hva }), model.isYoung(start, start + 1)];
        if (one.how === 'range') {
          // A TD's mirror has no Accessed bits to clear: only ranges that mean none of it.
          const attrFilter = this.config.type === 'tdx' ? one.filter & 1 : one.filter;
          return [vm.ageGfn({ slot: id, start, end, attrFilter }), model.age(start, end, attrFilter, false)];
        }
        const flush = one.how === 'age and flush';
        return [vm.host.age({ hva, length, flush }), model.age(start, end, 1, flush)];
      }
      case 'unmap': {
        const id = this.slotOf(one.slot);
        const range = this.rangeOf(id, one.at, one.count);
        if (!range) return [0, 0];
        const { start, end } = range;
        const flush = vm.unmapGfnRange({ slot: id, start, end, attrFilter: one.filter });
        if (flush) vm.flushRemoteTlbs();
        const plain = model.unmapGfnRange(id, start, end, one.filter);
        if (plain) model.counters.remote_tlb_flush_requests++;
        return [flush, plain];
      }
      case 'race': {
        const where = this.gfnOf(one.gfn);
        const priv = this.privateOf(where, one.means);
        const id = vcpu.beginFault({ gpa: this.gpaOf(where, priv), kind: 'read', private: priv });
        const begun = model.beginFault(where, priv);
        const inner =
          one.inner.op === 'convert' || one.inner.op === 'punch' ? { ...one.inner, pieces: null } : one.inner;
        const [engine, plain] = this.perform(inner);
        let result = vcpu.finishFault(id);
        if (result === 'frozen') result = vcpu.finishFault(id);
        return [`${engine} ${result}`, `${plain} ${model.finishFault(begun)}`];
      }
      case 'restore': {
        const snapshot = vm.snapshot();
        for (const [index, { isOpen, pages }] of model.files.entries()) {
          if (!isOpen) continue;
          files[index].punchHole(0, pages.length * PAGE);
          files[index].setMemoryAttributes({ offset: 0, size: pages.length * PAGE, attributes: 0 });
        }
        vm.restore(snapshot);
        vm.trace();
        return [0, 0];
      }
    }
  }

  /** What the engine and the model do not agree on. */
  differences(): string[] {
    const { vm, model, files, config: chosen } = this;
    const found: string[] = [];
    const say: Say = (what, engine, plain) => {
      if (engine !== plain && found.length < 8) found.push(`${what}: the engine ${engine}, the model ${plain}`);
    };
    // The gfns of the slots that there are, and that there were before the command.
    const slots = [...model.slots.values()];
    for (const { base: first, npages } of new Set([...slots, ...this.slotsBefore])) {
      for (let where = Math.max(first - 1, 0); where <= first + npages; where++) {
        const plain = model.isPrivate(where) ? 8 : 0;
        if (vm.attributesOf(where) !== plain) say(`attributes of ${where}`, vm.attributesOf(where), plain);
      }
    }
    this.slotsBefore = slots;
    for (const [id, { base, npages, file: bound }] of model.slots) {
      if (!bound) continue;
      for (let at2M = Math.ceil(base / 512) * 512; at2M + 512 <= base + npages; at2M += 512) {
        say(`mixed at ${at2M}`, vm.isMixed(id, 2, at2M), model.isMixed(at2M));
      }
    }
    this.findFaults(say);
    if (this.isHuge) {
      vm.trace();
      return found;
    }
    const stats = vm.stats();
    for (const [name, plain] of Object.entries(model.counters)) say(name, stats[name], plain);
    say('seq', vm.invalidate.seq, model.seq);
    // The counts agree, so what is there of the model's pages is all that is there.
    for (const [index, { isOpen, pages }] of model.files.entries()) {
      for (const [page, { present, pinned, rmpGfn }] of pages.entries()) {
        if (!isOpen || !present) continue;
        const look = () => (pinned ? files[index].elevateRefcount(page) : files[index].dropRefcount(page));
        say(`page ${page} of file ${index}`, answerOf(look), 'ok');
        if (chosen.type !== 'snp') continue;
        const entry = files[index].rmp(page);
        say(`RMP entry of page ${page}`, entry.assigned ? Number(entry.gpa / 4096n) : null, rmpGfn);
      }
    }
    let leaves = 0;
    for (const { root, level, gfn: first, count: run, spte } of vm.leafs()) {
      for (let where = first; where < first + run; where++) {
        leaves++;
        const leaf = root === 'mirror' ? model.mirror.get(where) : model.direct.get(where);
        if (!leaf || level !== 1) say(`${root} leaf of level ${level}`, where, 'none');
        else if ('isPrivate' in leaf) {
          say(`leaf ${where} is private`, spte.private, leaf.isPrivate);
          say(`leaf ${where} is accessed`, spte.accessed, leaf.accessed);
        }
      }
    }
    say('leaves', leaves, model.direct.size + model.mirror.size);
    if (chosen.type === 'tdx') {
      for (const { gfn: first, count: run, state } of vm.tdx.leafs()) {
        for (let where = first; where < first + run; where++) {
          say(`S-EPT ${where}`, state, model.mirror.get(where)?.accepted ? 'MAPPED' : 'PENDING');
        }
      }
    }
    const { records, privatePagesLost, pagesToAccept, recordsDropped } = vm.losses();
    const lost = records.flatMap(({ start, end }) => Array.from({ length: end - start }, (_, k) => start + k));
    say('losses', lost.join(), model.losses.join());
    say('losses dropped', recordsDropped, 0);
    say('private pages lost', privatePagesLost, model.counters.private_pages_lost);
    say('pages to accept', pagesToAccept, model.counters.private_pages_to_accept);
    if (chosen.isTraced) this.compareTrace(say);
    return found;
  }

  /** What must not be, whatever came before. */
  private findFaults(say: Say): void {
    // Pages that were bound elsewhere keep the gpa that they were assigned under.
    const findings = this.vm.check().filter(({ kind: what }) => what !== 'rmp-disagrees');
    say('check()', findings.map(({ message }) => message).join(), '');
    for (const broken of checkInvariants(this.vm)) say('invariant', broken, null);
    say('in progress', this.vm.invalidate.inProgress, 0);
  }

  private compareTrace(say: Say): void {
    const { vm, model } = this;
    say('trace records dropped', vm.traceDropped, 0);
    const zapped: typeof model.zapped = { direct: [], mirror: [] };
    const unmaps: string[] = [];
    let hull: string | null = null;
    for (const event of vm.trace() as unknown as AnyEvent[]) {
      if (event.name === 'unmap_gfn_range') {
        const { slot: id, start, end, attrFilter } = event;
        const text = `slot ${id} [${start}, ${end}) filter ${attrFilter}`;
        // A slot is visited once for each piece of its binding.
        if (unmaps.at(-1) !== text) unmaps.push(text);
      } else if (event.name === 'inv_end') hull = `${event.start}..${event.end}`;
      else if (event.name === 'spte_changed') {
        const { root, gfn: first, count: run, level, old, new: after } = event as unknown as Change;
        if (old.class !== 'leaf' || after.class !== 'nonpresent') continue;
        say('level of a zapped leaf', level, 1);
        for (let where = first; where < first + (run ?? 1); where++) zapped[root].push(where);
      }
    }
    const plain = model.unmaps.map(
      ({ slot: id, start, end, filter }) => `slot ${id} [${start}, ${end}) filter ${filter}`,
    );
    say('unmapped', unmaps.join(), plain.join());
    say('zapped', zapped.direct.join(), model.zapped.direct.join());
    say('zapped in the mirror', zapped.mirror.join(), model.zapped.mirror.join());
    say('hull', hull, model.hull?.join('..') ?? null);
  }

  /** What is pinned, and mapped by the host, shows as the files are made private; then they are closed. */
  end(): string[] {
    const { vm, model, files } = this;
    const wrong: string[] = [];
    for (const [index, plain] of model.files.entries()) {
      if (!plain.isOpen) continue;
      const size = BigInt(plain.pages.length * PAGE);
      for (const attributes of [0, 8]) {
        for (let tries = 0; tries <= plain.pages.length; tries++) {
          const engine = answerOf(() => files[index].setMemoryAttributes({ offset: 0n, size, attributes }));
          const [, pinned] = engine.split('EAGAIN at ');
          if (engine !== model.convert(plain, 0n, size, attributes, 0, () => {})) wrong.push(`at the end: ${engine}`);
          if (pinned === undefined || wrong.length > 0) break;
          files[index].dropRefcount(Number(pinned));
          model.pin(plain, Number(pinned), false);
        }
      }
    }
    for (const [index, plain] of model.files.entries()) {
      if (plain.isOpen) files[index].close();
      model.close(plain);
    }
    model.next();
    vm.trace();
    return [...wrong, ...this.differences()];
  }
}

type Say = (what: string, engine: unknown, plain: unknown) => void;
interface Change {
  root: 'direct' | 'mirror';
  gfn: number;
  count?: number;
  level: number;
  old: { class: string };
  new: { class: string };
}
const hvaOf = (id: number, start: number) => SLOT_HVA + id * 2 ** 40 + start * PAGE;

function runOne(chosen: Config, commands: readonly Command[], isHuge: boolean): void {
  const world = new World(chosen, isHuge);
  world.vm.trace();
  for (const [index, one] of commands.entries()) {
    world.model.next();
    const [engine, plain] = world.perform(one);
    const wrong = world.differences();
    if (engine !== plain && !isHuge) wrong.unshift(`result: the engine ${engine}, the model ${plain}`);
    if (wrong.length === 0) continue;
    const said = commands.slice(0, index + 1).map((done) => JSON.stringify(done));
    throw new Error([...wrong, JSON.stringify(chosen), ...said].join('\n'));
  }
  const wrong = world.end();
  if (wrong.length > 0) {
    throw new Error([...wrong, JSON.stringify(chosen), ...commands.map((one) => JSON.stringify(one))].join('\n'));
  }
  world.vm.destroy();
}

test.each([
  ['leave the engine and the plain model alike', false],
  ['over folios of 2M have the attributes that the model has, and leave the oracle nothing to find', true],
])(
  `${RUNS} lives of files that are converted in place %s`,
  (_, isHuge) => {
    fc.assert(
      fc.property(sequence, ({ config: chosen, commands }) => runOne(chosen, commands, isHuge)),
      { numRuns: RUNS, ...SEED, verbose: 0 },
    );
  },
  TIMEOUT_MS,
);
