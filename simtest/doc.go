// Package simtest holds the tests that look at Granary as a whole: the import
// graph and other rules of the code here, real programs in simtest/e2e, images
// that go through files in simtest/trips, power cuts in simtest/powercut, and the
// measurements, beside other programs, in simtest/bench.
package simtest
