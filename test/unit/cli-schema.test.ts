// `eptsim schema`: what the JSON Schema of a scenario takes and refuses.

import { expect, test } from 'vitest';
import { scenarioSchema, scenarioType } from '../../src/cli/schema.ts';
import { checkScenario, scenarioFields, scenarios } from '../../src/index.ts';

const minimal = { name: 'one', vm: { type: 'tdx', memory: '1GiB' }, steps: [{ destroy: null }] };

test.each(Object.keys(scenarios))('%s is what the schema describes', (name) => {
  expect(scenarioType().safeParse(scenarios[name]).error).toBeUndefined();
});

test.each<[string, object]>([
  [
    'a method that is misspelt',
    { ...minimal, steps: [{ setMemoryAtributes: { address: 0, size: 4096, attributes: 8 } }] },
  ],
  [
    'a field that is misspelt',
    { ...minimal, steps: [{ setMemoryAttributes: { adress: 0, size: 4096, attributes: 8 } }] },
  ],
  ['a field that is missing', { ...minimal, steps: [{ setMemoryAttributes: { address: 0, size: 4096 } }] }],
  ['an option that is none', { ...minimal, vm: { ...minimal.vm, memroy: 1 } }],
  ['no steps', { name: 'one', vm: minimal.vm }],
])('%s is refused, as the checker refuses it', (_, scenario) => {
  expect(scenarioType().safeParse(minimal).success).toBe(true);
  expect(checkScenario(minimal)).toEqual([]);
  expect(scenarioType().safeParse(scenario).success).toBe(false);
  expect(checkScenario(scenario)).not.toEqual([]);
});

test('every method is a property of a step', () => {
  const schema = scenarioSchema() as { $defs: { step: { properties: object } } };
  const names = Object.keys(schema.$defs.step.properties);
  expect(names).toEqual(expect.arrayContaining(Object.keys(scenarioFields().methods)));
});
