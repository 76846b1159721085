// What a VM is made with: the options, their defaults and checks, and the memory that they ask for.

import type { WasmSource } from './engine/load.ts';
import { flag, halvesOf, integer, object, oneOf, type U64 } from './errors.ts';
import { type TdOptions, TRACK_POLICIES, ZAP_POLICIES } from './tdx.ts';

export const VM_TYPES = ['default', 'sw-protected', 'tdx', 'snp'] as const;
export type VmType = (typeof VM_TYPES)[number];
export const KERNELS = ['rfc-v4', 'linux-6.12', 'linux-6.16'] as const;
export type KernelProfile = (typeof KERNELS)[number];
export const FILTER_FORMS = ['none', 'rfc-v4', 'gmem-v13', 'tdx-v18', 'attr-filter', 'gmem-in-place'] as const;
export type FilterForm = (typeof FILTER_FORMS)[number];
export const GMEM_FILTERS = ['by-target', 'by-content'] as const;

export interface CreateVmOptions {
  /** Default 'default': a VM without private memory. */
  type?: VmType;
  /** The rules; default 'rfc-v4': the RFC's filter and vendor callback over the rules of 6.12. */
  kernel?: KernelProfile;
  /** What the selector of a kvm_gfn_range means; default the kernel's own. */
  filterForm?: FilterForm;
  /** Capacity in bytes of all memslots together; creates none. */
  memory: U64;
  /** Default 1. */
  vcpus?: number;
  /** Physical address bits of the host, 36 to 52; default 52. Up to 48 the page tables have four levels. */
  maxphyaddr?: number;
  /** Guest physical address width of a TD; default 48. */
  gpaw?: 48 | 52;
  quirks?: {
    /** KVM_X86_QUIRK_SLOT_ZAP_ALL; default true. */
    slotZapAll?: boolean;
  };
  /** Module parameters, as at boot. */
  nxHugePages?: boolean;
  eagerPageSplit?: boolean;
  mmioCaching?: boolean;
  /** The hull covers huge regions at a conversion's ends (6.12.117, 6.16); default true. */
  hugepageGuard?: boolean;
  /** A TD's guest that touches a PENDING page kills the VM (true, the default) or takes a #VE. */
  septVeDisable?: boolean;
  /** A TD's own: its build phase, page sizes and policies. Only with type 'tdx'. */
  td?: TdOptions;
  /**
   * An SNP guest's accesses also meet the gpa and the validated bit of the RMP entry, as in hardware: the guest must
   * pvalidate() a private page before it touches it. Default false. The level is always met. Only private accesses through
   * private leaves meet the RMP.
   */
  rmpChecks?: boolean;
  /**
   * filterForm 'gmem-in-place': what a conversion invalidates. 'by-target' (default): what the new attributes leave behind.
   * 'by-content': what the range holds, so both mappings of a mixed range: the bug of July 2026.
   */
  gmemInvalidateFilter?: (typeof GMEM_FILTERS)[number];
  /** Capacity of the trace in 16-byte records; default 0: no trace. */
  traceRecords?: number;
  /** The engine, where the shipped file cannot be found. */
  wasm?: WasmSource;
  /** The engine's second build, which steps() runs on, where the shipped file cannot be found (eptsim.steps.wasm). */
  stepsWasm?: WasmSource;
  /** The debug build of the engine: the same with assertions. */
  debug?: boolean;
}

export type ResolvedOptions = Readonly<
  Required<Omit<CreateVmOptions, 'wasm' | 'stepsWasm' | 'quirks' | 'memory' | 'td'>> & {
    memory: bigint;
    quirks: { slotZapAll: boolean };
    /** Of a TD only. */
    td: Readonly<Required<TdOptions>> | undefined;
  }
>;

const OWN_FORM: Readonly<Record<KernelProfile, FilterForm>> = {
  'rfc-v4': 'rfc-v4',
  'linux-6.12': 'none',
  'linux-6.16': 'attr-filter',
};

/** What each object may hold, so that a misspelt option is no default. */
const OPTION_NAMES: Readonly<Record<keyof CreateVmOptions, true>> = {
  type: true,
  kernel: true,
  filterForm: true,
  memory: true,
  vcpus: true,
  maxphyaddr: true,
  gpaw: true,
  quirks: true,
  nxHugePages: true,
  eagerPageSplit: true,
  mmioCaching: true,
  hugepageGuard: true,
  septVeDisable: true,
  td: true,
  rmpChecks: true,
  gmemInvalidateFilter: true,
  traceRecords: true,
  wasm: true,
  stepsWasm: true,
  debug: true,
};
const QUIRK_NAMES: Readonly<Record<keyof Required<CreateVmOptions>['quirks'], true>> = { slotZapAll: true };
const TD_NAMES: Readonly<Record<keyof TdOptions, true>> = {
  build: true,
  hugePages: true,
  zap: true,
  track: true,
  localRetry: true,
  packages: true,
};
/** @throws {TypeError} naming a key of `value` that is not one of `names`, unless it is undefined */
function named(value: object, name: string, names: Readonly<Record<string, true>>): void {
  for (const [key, held] of Object.entries(value)) {
    if (held !== undefined && !Object.hasOwn(names, key)) {
      throw new TypeError(`${name} has no "${key}": it must be one of ${Object.keys(names).join(', ')}`);
    }
  }
}

const MIB = 1024 * 1024;
/** A Wasm memory of 32-bit addresses ends here. */
const MEMORY_MAX = 65536 * 65536;

function resolveTd(td: TdOptions): Required<TdOptions> {
  return {
    build: flag(td.build, 'td.build', false),
    hugePages: flag(td.hugePages, 'td.hugePages', false),
    zap: oneOf(td.zap ?? 'whole-leaf', 'td.zap', ZAP_POLICIES),
    track: oneOf(td.track ?? 'per-page', 'td.track', TRACK_POLICIES),
    localRetry: flag(td.localRetry, 'td.localRetry', true),
    packages: integer(td.packages ?? 1, 'td.packages', 1, 64),
  };
}

/**
 * Fills in the defaults.
 * @throws {TypeError | RangeError} for options that make no sense, naming the option, its value and the limit
 */
export function resolve(options: CreateVmOptions): ResolvedOptions {
  object(options, 'options');
  named(options, 'options', OPTION_NAMES);
  if (options.memory === undefined) throw new TypeError('memory is missing: the capacity in bytes of all memslots');
  const [low, high] = halvesOf(options.memory, 'memory');
  const memory = BigInt(low) + (BigInt(high) << 32n);
  if (memory === 0n || memory % 4096n !== 0n || memory > 2n ** 52n) {
    throw new RangeError(`memory is ${memory}: it must be a multiple of 4096 within 4096 and 2^52 bytes`);
  }
  const kernel = oneOf(options.kernel ?? 'rfc-v4', 'kernel', KERNELS);
  const gpaw = options.gpaw ?? 48;
  if (gpaw !== 48 && gpaw !== 52) throw new RangeError(`gpaw is ${String(gpaw)}: it must be 48 or 52`);
  const quirks = options.quirks ?? {};
  object(quirks, 'quirks');
  named(quirks, 'quirks', QUIRK_NAMES);
  const td = options.td ?? {};
  object(td, 'td');
  named(td, 'td', TD_NAMES);
  if (options.td !== undefined && options.type !== 'tdx') {
    throw new RangeError(`td is given, and type is ${String(options.type ?? 'default')}: it must be tdx`);
  }
  const filterForm = oneOf(options.filterForm ?? OWN_FORM[kernel], 'filterForm', FILTER_FORMS);
  if (filterForm === 'gmem-in-place' && kernel !== 'linux-6.16') {
    throw new RangeError(`filterForm is "gmem-in-place", and kernel is "${kernel}": it must be "linux-6.16"`);
  }
  return {
    type: oneOf(options.type ?? 'default', 'type', VM_TYPES),
    kernel,
    filterForm,
    memory,
    vcpus: integer(options.vcpus ?? 1, 'vcpus', 1, 4096),
    maxphyaddr: integer(options.maxphyaddr ?? 52, 'maxphyaddr', 36, 52),
    gpaw,
    quirks: { slotZapAll: flag(quirks.slotZapAll, 'quirks.slotZapAll', true) },
    nxHugePages: flag(options.nxHugePages, 'nxHugePages', false),
    eagerPageSplit: flag(options.eagerPageSplit, 'eagerPageSplit', true),
    mmioCaching: flag(options.mmioCaching, 'mmioCaching', true),
    hugepageGuard: flag(options.hugepageGuard, 'hugepageGuard', true),
    septVeDisable: flag(options.septVeDisable, 'septVeDisable', true),
    td: options.type === 'tdx' ? resolveTd(td) : undefined,
    rmpChecks: flag(options.rmpChecks, 'rmpChecks', false),
    gmemInvalidateFilter: oneOf(options.gmemInvalidateFilter ?? 'by-target', 'gmemInvalidateFilter', GMEM_FILTERS),
    traceRecords: integer(options.traceRecords ?? 0, 'traceRecords', 0, 2 ** 27),
    debug: flag(options.debug, 'debug', false),
  };
}

/**
 * Bytes of linear memory for a guest: the fixed regions, the trace, and twice what the stores of every page can need at
 * worst (page tables, attributes, guest_memfd, host ptes, dirty bitmaps), up to what 32-bit addresses reach: operations
 * reserve more than they use, and free blocks come in sizes. Untouched memory costs nothing.
 */
export function memoryBytes(options: ResolvedOptions): number {
  const pages = Number(options.memory / 4096n);
  const perPage = options.type === 'default' ? 4 : 6;
  const wanted = 106 * MIB + options.traceRecords * 16 + pages * perPage;
  return Math.min(Math.ceil(wanted / 65536) * 65536, MEMORY_MAX);
}
