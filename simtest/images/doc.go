// Package images makes what images for measurements are made of: layers of Debian, as tars, what one has over
// another, and eStargz of them.
package images
