// Package p2p moves chunks between the members of a cluster, and questions to the
// members that ask them for all. It decides whom to ask, when to stop waiting and
// whom to believe; how bytes travel is the business of a [Transport], what they mean
// that of package wire, and who is a member that of package tracker.
//
// # How a cold blob gets into a cluster
//
// A blob is placed by stripes, which are small where members are many ([decide.StripeSize]). A node that misses chunks of a stripe asks the
// stripe's owner, which every node computes alike. The owner answers from what it
// has, else from a provider, else from the upstream: once, however many wait. So
// all members pull different parts of a cold image at the same time, and each part
// crosses the registry's link once.
//
// There are no chains. A request is made to an owner, who may ask providers and the
// upstream, or to a holder, who answers from what it has. Two nodes with different
// views of the membership cost a second copy at worst.
//
// # Waiting is not failure
//
// An owner that waits says so several times a second, and for as long as it does
// the asker waits too: to ask the registry for what somebody fetches already is how
// a crowd on a thin link collapses. Only silence and errors count against a member.
// Whom to ask next is decided by package decide, which has neither clock nor
// goroutine of its own: after some silence also the next owner, and after the peer
// budget the upstream. Each owner that is silent leaves half of the budget to those
// after it: when two of a stripe crash together, before anybody knows, all who wait for
// it would else turn to the upstream (1000 nodes, of which 100 crash: 8.4 copies, and 1.01).
//
// # Fan-out
//
// An owner sends one stripe to two members at a time, in a large zone to three ([decide.FanOut]), and refers all others at once to
// members that have it or are being sent it, as many to each at a time: of four by chance
// to the one that sends the least. One that has not got all of it yet sends each chunk
// as it comes. So a crowd becomes a tree, in which each member sends about what it gets.
// Who has got it from another tells the owner, and is one more to be referred to. Nobody is
// referred to who is below it in the tree of the same owner, and nobody sends on what
// comes from another owner: no two wait for each other.
//
// A stripe of one chunk cannot be sent on before all of it is there. Who asks for it waits until a member has it that may
// send it to one more, and is bound to nobody before; only where hundreds wait others are referred to these.
//
// # What was tried
//
// By simtest/sim: 400 or 500 nodes pull 400 or 500 MB in two layers over links of 1 Gbit/s, or from
// the fifth line on of 300 MB/s, from a registry that has five times that; the time of 99 in 100, in units of what the links alone take.
//
//	2.0    referrals to members that have all of a stripe, one to each at a time, while the
//	       others wait; readers ask for all stripes of their windows at once. The members that
//	       are ahead have everything first and send all of it (2.0 copies of the image), and those
//	       behind send nothing. With 10,000 nodes an owner has more who wait than it may answer
//	2.02   referrals to members that are being sent the stripe, the earliest first: a tree, whose
//	       upper half is always the same members
//	1.6    to the one of four that sends the least
//	1.56   and readers begin with their stripes in no order, eight at a time (chunk.Turns)
//	1.45   five at a time, of 260 nodes
//	1.45   three or four at a time, which leaves one who pulls alone few connections to a registry
//	1.7    windows of 64 MiB in the order of the blob, and 1.9 of 128 MiB: more of the same is worse
//
// Then 500 nodes, 1 GB in two layers and links of 300 MB/s, from a registry of 1.5 GB/s, and from one of 300 MB/s:
//
//	1.37          windows of 32 MiB, and 64 MiB of memory for all readers
//	1.28   1.29   the same, and 128 MiB
//	1.22   1.24   windows of 64 MiB, and 128 MiB of memory, which is twice what a node spends
//	1.29   2.01   stripes of the whole blob in no order, read back from the store: the registry sends all of them at
//	              once, and so all late
//	1.23   1.62   256 MiB ahead of the reader (1.21 and 1.37 of 128 MiB)
//	1.21   1.26   64 MiB ahead, of which memory holds 32 and the store the rest, five at a time
//	1.19   1.24   six at a time
//	1.18   1.21   eight at a time; but 300 nodes take longer for 100 MB
//	1.18   1.23   the least busy of eight; but 10,000 nodes take a tenth longer for 100 MB
//	1.10   1.18   two at first, and one more from each on that has come, up to six; and a holder that sends eight stripes, and
//	              more than who asks it, sends that one back to the owner, who then knows another: this is how it is
//	1.11   1.18   six at once from the beginning, which takes a sixth longer for 100 MB
//	1.07   1.16   stripes of 2 MiB in place of 4, and twice as many messages and requests to the registry
//	1.06   1.14   stripes of 1 MiB, and four times as many
//
// Of 2600 nodes, 3 GB and links of 300 MB/s from 1.5 GB/s 99 in 100 took 15.6 s with windows alone, 13.3 s with the whole blob in
// no order, 11.6 s with 64 MiB ahead, and take 11.0 s so, 11.3 s from 300 MB/s; the links alone take 10 s. Whole nodes in virtual time (simtest/virtual),
// 100 of which pull 48 MiB over links of 1 Gbit/s, take 0.81 s in place of 0.97 s. Few members gain nothing by what is ahead: eight take 1.4 in
// place of 1.2 for 190 MB in five layers from a registry that is no faster than they are, whence [decide.Ahead].
//
// What is small comes less near the bound. With stripes of 4 MiB 1000 nodes took 1.64 times what links of 1 Gbit/s allow for 100 MB, and 10,000
// took 1.88: until the first stripes are everywhere half of the links have nothing to send. With stripes of one chunk ([decide.StripeSize]) they took 1.31 and
// 1.45. A node has something to send after 8 ms in place of 34, six of the smaller ones at a time keep its link as busy, and each waits for less of what else is
// sent. Where owners have stripes of 4 MiB and pass on single chunks it is 1.35 with 1000 nodes, but 1.6 in place of 1.2 with eight. Few members keep stripes of 4 MiB. They gain little
// by smaller ones, and their registry gets a quarter of the requests. What was lost then was lost on the way: all who asked were bound at once to a member that was being sent the chunk, and some of
// those got it late. Since they wait for one that has it, the number of those who have it doubles in little more than the time that one takes to send it, and it is 1.24 and 1.31.
//
// By 1000 nodes with stripes of one chunk, for 100 MB from a registry of 10 Gbit/s, and of 1:
//
//	1.33   1.90   each stripe to two members at a time; 10,000 nodes take 1.46 and 2.5
//	1.31   1.76   to three ([decide.FanOut]); 10,000 nodes 1.45 and 1.95, but a hundred 1.23 and 1.73 in place of 1.20 and 1.64
//	1.33   1.79   to four
//	1.35   2.2    to two, with up to eight stripes at a time in place of six (1.40 and 1.9 with four, 2.0 and 2.2 with twelve)
//	1.70   1.86   to three, with six at once from the beginning
//	1.42   2.3    to two, in the order of the blob at first; 1.34 to 1.37 and 1.8 to 2.5 out of the next 4 to 16
//	1.69   2.3    to two, holders refuse from four stripes on (1.39 and 1.9 from twelve)
//	1.36   1.93   to two, the least busy of eight
//	1.24   1.62   to two, by members that have it, to three 1.25 and 1.64; but with 10,000 nodes an owner has more who wait than it may answer (40 s)
//	1.33   1.83   to two; where 16 wait, others are referred to who is being sent it (where 64 wait 1.29 and 1.82)
//	1.28   1.71   to two; where 64 wait, to who waits, and to those who are referred to them, and so on; 10,000 nodes take 2.1 and 3.3
//	1.25   1.67   to two; where 64 wait, to two for each who waits; 10,000 nodes 1.34 and 1.89, and 1.03 copies, for more wait than it may answer
//	1.23   1.66   to three; where 256 wait so, and where 768 wait to who is being sent it: 10,000 nodes 1.32 and 1.74
//	1.24   1.57   and each begins with one of the 48 that it has wanted for longest: this is how it is; 10,000 nodes 1.31 and 1.63
//	1.28   1.52   out of the 32 that it has wanted for longest; out of 64 1.24 and 1.61
//
// A thin registry sends all that is asked for at the same time, and so the last chunk of each late. If no more than eight owners asked it at a time it would
// be 1.5 in place of 1.57, but they would have to agree on that. Those who wait and ask for others meanwhile gain nothing. Larger stripes go on chunk by chunk, and with them it is worse to wait for a member that has
// all: 300 nodes would take 1.16 and 1.23 for 1 GB in place of 1.10 and 1.17.
//
// What gained nothing, or lost, for 1000 nodes and 100 MB with stripes of 4 MiB: senders that send first what is least deep in its tree (2.4 in place of 2.0), what came
// first (1.8 in place of 1.6), last (2.3), or for those that have got the least (1.8) or the most (1.9); one from each member (7.4); smaller windows; not to begin with the
// first of each blob (1.6). If owners knew what each holder sends at the moment, and not when it asked, it would be 1.5 in place of 1.6. Owners that send their own stripes before
// others' lose a third. Where 5 of 100 nodes are ten times slower, it is no better if whoever waits for a chunk four or eight times as long as usual asks the owner for another
// holder, nor if the time that its chunks take is told by each in place of how many it sends. To have another stripe fetched while an owner is silent gains a twelfth where a tenth of all crash.
// Stripes of one chunk also of 1 GB take 1.06 and 1.12 times the bound in place of 1.11 and 1.18, and where 5 of 100 nodes are slow half of all have it after 9.4 s in place of 13.4; but four times as many messages, and
// where a tenth of all crash 17.8 s in place of 15.2, for each owner that is silent costs as much for a small stripe. To wait for strangers no longer than four times what others take to answer makes that
// 13.9 s with stripes of 4 MiB, but 1.12 copies leave the registry where messages are lost.
//
// A holder that refuses near what it gets itself, whoever asks, sends everybody back to the owner (3 to 5); one that compares
// with what the asker sends does not. An owner that waits for its first chunk and then places all who have asked by
// chance gains a tenth with 3000 nodes and 100 MB, where it exceeds the bounds on requests.
//
// # What one member may cost another
//
// Whoever breaks the protocol is cut off. Lanes of a member, requests under way on
// them and chunks that are being sent have bounds, of each member and of all, and
// each kind of work has its own, so that no two members wait for each other for
// ever: an owner's work may wait for a holder's, and a holder's for nobody's. A chunk
// that nobody asked for ends the lane, and one that is compressed becomes no larger
// than a chunk is.
//
// # What is believed
//
// Every chunk comes with a [wire.Claim], signed by the member that fetched it from
// the upstream or has proven its blob, unless the chunk is a whole blob. Bytes that
// do not match their claim are the sender's fault. When a blob does not match its
// digest although every chunk matched its claim, what the upstream sends next is
// compared with the claims, and the fault is the signer's ([Claims]). Whoever is at
// fault is not asked nor believed for a while ([Peers]).
//
// A member that has all of a blob also tells the digests of its chunks, for others to find
// these in what they have. That is its word too, but not a claim: what is found so is not lent.
package p2p
