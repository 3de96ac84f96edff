// Package leads finds out which files of an image a program is going to read, by what
// the file that it has just begun to read says of others: the shared libraries that an
// executable needs, the interpreter of a script, the modules that a module imports. So
// what a program would ask for one after the other, a round trip each, can be fetched
// while it is still busy with the first.
//
// # What is believed
//
// Nothing has to be true: a lead that is wrong costs the bytes of one file, and one that
// is missing a round trip. So files are read as far as their formats are the same in all
// versions, no program's search rules are followed to the letter, and what is not
// understood leads nowhere. Nothing here is executed, and a file may be anything.
//
// # Why by content
//
// Names do not tell. Files of the same directory are read together seldom enough that
// fetching them all doubles what travels. What files say of each other is all but exact:
// of 154 modules that "import numpy" reads, what the modules themselves import at their
// outermost level gives all but 4, and 20 others, small ones; of 165 that a server with
// Express reads, single lines of the modules give 157, and 14 others.
package leads
