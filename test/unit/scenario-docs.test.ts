// docs/scenario-format.md says what the code takes: its table of methods is compared, its examples run.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { parseScenarioText } from '../../src/cli/scenario-file.ts';
import { type CreateVmOptions, checkScenario, createVm, runScenario, type Scenario } from '../../src/index.ts';
import { LIMITS } from '../../src/scenario/check.ts';
import { CONSTANTS, FUNCTION_NAMES } from '../../src/scenario/expression.ts';
import { METHODS } from '../../src/scenario/methods.ts';

const text = readFileSync('docs/scenario-format.md', 'utf8');
const examples = [...text.matchAll(/^```yaml\n([\s\S]*?)^```/gm)].map((match) => match[1]);
const onThisBuild = (options: CreateVmOptions) => createVm({ ...options, debug: process.env.EPTSIM_BUILD === 'debug' });

test('the table of methods is the one the code has', () => {
  const rows = Object.entries(METHODS).map(([name, { handle, fields, returns }]) => {
    const list = Object.entries(fields).map(([field, { optional }]) => `\`${field}\`${optional ? '?' : ''}`);
    const result =
      returns === undefined
        ? ''
        : (returns.words?.join(', ') ?? (returns.kind === 'flag' ? 'true or false' : 'a number'));
    return `| \`${name}\` | ${handle} | ${list.join(', ')} | ${result} |`;
  });
  const table = ['| method | of | fields | returns |', '|---|---|---|---|', ...rows].join('\n');
  const [, written] = /<!-- methods -->\n([\s\S]*?)<!-- \/methods -->/.exec(text) as RegExpExecArray;
  expect(written.trim()).toBe(table);
});

test('every function, constant and limit is named', () => {
  for (const name of FUNCTION_NAMES) expect(text).toContain(`${name}(`);
  for (const name of Object.keys(CONSTANTS)) expect(text).toContain(`\`${name}\``);
  expect(text).toContain(`${LIMITS.steps.toLocaleString('en-US')} steps in ${LIMITS.depth} levels`);
  expect(text).toContain(`${LIMITS.parameters} parameters and ${LIMITS.variants} variants`);
});

describe('the examples', () => {
  const first = parseScenarioText(examples[0], 'example').scenario as Scenario;

  test('the first one runs and its expectations hold', async () => {
    expect(checkScenario(first)).toEqual([]);
    const { failures, variants } = await runScenario(first, { createVm: onThisBuild });
    expect(failures).toBeUndefined();
    expect(variants[0].counters).toMatchObject({ leafs_zapped_direct_2m: 1, gfns_zapped_outside_request: 511 });
  });

  test('the steps are well formed', () => {
    const steps = parseScenarioText(examples[1], 'example').scenario as Scenario['steps'];
    const memory = [{ slot: 0, gpa: 0, size: '8GiB', guestMemfd: 'ram' }];
    expect(checkScenario({ name: 'x', vm: { memory: '8GiB' }, memory, steps })).toEqual([]);
  });
});
