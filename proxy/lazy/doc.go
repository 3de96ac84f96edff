// Package lazy opens layers by their tables of contents, and reads single files of
// them, without the rest of the layer where its format allows that.
//
// [Layers] finds out a layer's format, opens it, and remembers it. What has to be
// made by reading all of a layer, an index of an ordinary tar+gzip say, is made once
// and kept ([Derived]), and other members are asked for it first. [Contents] keeps
// what was read of files by its digest, for all layers and images.
//
// Who may read a layer is for the caller to know, who gives the layer's bytes as they
// are read in somebody's name.
package lazy
