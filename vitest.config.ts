import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    testTimeout: 20_000,
    hookTimeout: 30_000,
    // Two cores: more workers than that only makes socket tests wait for one another.
    maxWorkers: 2,
    coverage: { include: ['src/**/*.ts'] },
  },
});
