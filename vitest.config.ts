import { defineConfig } from 'vitest/config';

// The same tests run on the debug and on the release engine; test/support reads EPTSIM_BUILD.
const onBothBuilds = ['debug', 'release'].map((build) => ({
  extends: true as const,
  test: {
    name: build,
    include: ['test/**/*.test.ts'],
    exclude: ['test/package/**', 'test/browser/**'],
    env: { EPTSIM_BUILD: build },
  },
}));

export default defineConfig({
  test: {
    globalSetup: ['test/support/build-first.ts'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    maxWorkers: 2,
    passWithNoTests: false,
    projects: [
      ...onBothBuilds,
      {
        extends: true as const,
        test: {
          name: 'package',
          include: ['test/package/**/*.test.ts', 'test/browser/**/*.test.ts'],
          testTimeout: 180_000,
        },
      },
    ],
  },
});
