// Other tabs of this page: they share the history, and a job is followed by one of them.

/** Milliseconds in which another tab answers. */
const PATIENCE = 300;

const channel = new BroadcastChannel("imagegen");
let mine = null;

channel.onmessage = ({ data }) => data.asks && data.asks === mine && channel.postMessage({ follows: mine });

/** Says which entry this tab follows; null for none. */
export const follow = (key) => (mine = key);

/** Whether another tab follows an entry. */
export function isFollowed(key) {
  return new Promise((resolve) => {
    const asked = new BroadcastChannel("imagegen");
    const end = (found) => {
      asked.close();
      resolve(found);
    };
    asked.onmessage = ({ data }) => data.follows === key && end(true);
    setTimeout(end, PATIENCE, false);
    asked.postMessage({ asks: key });
  });
}
