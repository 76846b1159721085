// Scenarios: a VM, its memory and a list of steps, run on one or several variants side by side.
//
// A scenario is plain data (a YAML or JSON file, or an object), so that it can be kept, compared and sent. Every quantity
// may be a number, a size such as '1GiB' or an expression over the scenario's parameters. docs/scenario-format.md
// describes each field with examples.

import { scenarios as builtIn } from './scenario/built-in.ts';
import { MEMORY_FIELDS, VM_FIELDS } from './scenario/check.ts';
import type { Field } from './scenario/fields.ts';
import { METHODS } from './scenario/methods.ts';

export { checkScenario } from './scenario/check.ts';
export {
  type RunOptions,
  runScenario,
  ScenarioError,
  type ScenarioFailure,
  type ScenarioResult,
  type StepResult,
  scenarioNamed,
  type VariantResult,
} from './scenario/run.ts';

/** A number, a size such as '1GiB', or an expression such as 'convertSize * (1 - privateShare)'. */
export type Quantity = number | bigint | string;

/** Where a value sits in a scenario: the keys and indexes that lead to it. */
export type ScenarioPath = readonly (string | number)[];

export interface Scenario {
  /** The name results carry. */
  name: string;
  description?: string;
  /** What a run can change with `set`. A plain quantity is a default without limits. */
  parameters?: Record<string, Quantity | Parameter>;
  /** Names for values computed from the parameters, in order. */
  let?: Record<string, Quantity>;
  /** What must hold of the parameters; the run is refused with `say` otherwise. */
  require?: { that: string; say: string }[];
  /** The options of createVm(). Every variant starts from these. */
  vm: VmSection;
  /** Memslots that exist before the first step, each with its host memory and perhaps its guest_memfd. */
  memory?: MemorySection[];
  /** 'empty': the oracle vm.check() must find nothing after each step. Default 'off'. */
  check?: 'empty' | 'off';
  steps: ScenarioStep[];
  /** The variants; without it the scenario is one variant with the scenario's name. */
  compare?: Variant[];
}

export interface Parameter {
  default: Quantity | boolean;
  description?: string;
  /** Limits, ends included; expressions over the parameters before this one. */
  min?: Quantity;
  max?: Quantity;
  multipleOf?: Quantity;
  /** The words the parameter can be; it is no number then. */
  oneOf?: string[];
}

export interface VmSection {
  type?: string;
  kernel?: string;
  filterForm?: string;
  /** Bytes of all slots together. */
  memory?: Quantity;
  vcpus?: Quantity;
  maxphyaddr?: Quantity;
  gpaw?: Quantity;
  quirks?: { slotZapAll?: boolean | string };
  nxHugePages?: boolean | string;
  eagerPageSplit?: boolean | string;
  mmioCaching?: boolean | string;
  hugepageGuard?: boolean | string;
  septVeDisable?: boolean | string;
  /** A TD's own options: each as createVm()'s, or an expression. */
  td?: Record<string, Quantity | boolean>;
  rmpChecks?: boolean | string;
  gmemInvalidateFilter?: string;
}

export interface MemorySection {
  slot: Quantity;
  gpa: Quantity;
  size: Quantity;
  /** Memslot flags, as raw bits. */
  flags?: Quantity;
  /** The kind of host memory mapped for the slot: anon4k (default), thp, hugetlb2m, hugetlb1g or shmem. */
  host?: string;
  /** Where in the host's address space; by default 16 TiB above the gpa. */
  hva?: Quantity;
  /** The name of the slot's guest_memfd. A name seen first here creates one of `size` bytes (plus the offset). */
  guestMemfd?: string;
  guestMemfdOffset?: Quantity;
  /** The folios of a guest_memfd that is created for the slot: 4K or 2M; as createGuestMemfd() if not given. */
  folioSize?: string;
}

/**
 * One step: a method of the API with its fields, such as `{ setMemoryAttributes: { address: 0, size: '1GiB', attributes:
 * 'PRIVATE' } }`, or a group of steps under `steps`; and what to do with it.
 */
export interface ScenarioStep {
  /** The name in the results; by default the method's. */
  name?: string;
  /** Steps taken as one. */
  steps?: ScenarioStep[];
  /** Skips the step unless it holds; `type`, `variant`, `kernel` and `filterForm` name what the variant is. */
  if?: string | boolean;
  /** How often; `index` counts from 0. */
  repeat?: Quantity;
  /** The name the count has in expressions, `index` by default. */
  index?: string;
  /** The result's own counters are those of this step (one step of the list at most). */
  measure?: boolean;
  /** A name for what the method returns: a guest_memfd, a fault begun. */
  as?: string;
  /** What the method must return. */
  returns?: Quantity | boolean;
  /** The errno the method must be refused with. */
  refused?: string;
  /** Counters and losses with what they must be: a quantity, or a comparison such as '>= 1'. */
  expect?: Record<string, Quantity>;
  /** Any method of the API by its name. */
  [method: string]: unknown;
}

export interface Variant {
  name: string;
  /** Options that differ from the scenario's vm section. */
  vm?: VmSection;
  /** Parameters that differ from their defaults. */
  set?: Record<string, Quantity | boolean>;
  check?: 'empty' | 'off';
  /** What the measured step's counters and losses must be. */
  expect?: Record<string, Quantity>;
}

/** What a field of a scenario takes: a kind of value, perhaps words or fields of its own. */
export type ScenarioField = Field;

/** The fields of a scenario's sections, and of each method a step can name: what an editor needs to know. */
export function scenarioFields(): {
  vm: Readonly<Record<string, ScenarioField>>;
  memory: Readonly<Record<string, ScenarioField>>;
  methods: Readonly<Record<string, Readonly<Record<string, ScenarioField>>>>;
} {
  const methods = Object.fromEntries(Object.entries(METHODS).map(([name, { fields }]) => [name, fields]));
  return { vm: VM_FIELDS, memory: MEMORY_FIELDS, methods };
}

/** The scenarios that come with the package, by name. */
export const scenarios: Readonly<Record<string, Scenario>> = builtIn;
