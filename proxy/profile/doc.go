// Package profile is about which parts of an image programs read: the access profile,
// from which the next run of the same image is given them before it asks.
//
// A [Recorder] takes note of one run. [Profile.Add] adds it to what earlier runs have
// read, and [Profile.Likely] says what of that the next one is likely to read, in the
// order in which it was first read.
package profile
