//! Network namespaces with real servers, clients and faults. One program, so that
//! the lab is linked once.

mod lab;
