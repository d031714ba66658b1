// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";

/// @title EIP-2612 permits that cannot be front-run into a failure
library Permits {
    /// @dev A permit that someone copied out of the mempool has been used, and the allowance is there: go on. If it is
    /// not there, the transfer that follows says so.
    function tryPermit(address token, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) internal {
        try IERC20Permit(token).permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
    }
}
